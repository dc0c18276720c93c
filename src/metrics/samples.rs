//! The samples of a family, and the value of a gauge.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A gauge's value. Whole numbers are printed as such.
#[derive(Debug, Default)]
pub struct Value(AtomicU64);

impl Value {
    pub(super) fn new(value: f64) -> Self {
        Value(AtomicU64::new(value.to_bits()))
    }
    pub(super) fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Relaxed);
    }
    pub(super) fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
    pub(super) fn show(&self, encoder: &mut MetricEncoder) -> Result<(), std::fmt::Error> {
        /// Below this every whole number is an exact f64.
        const EXACT: f64 = (1u64 << 53) as f64;
        let value = self.get();
        if value.fract() == 0.0 && value.abs() < EXACT {
            encoder.encode_gauge(&(value as i64))
        } else {
            encoder.encode_gauge(&value)
        }
    }
}

impl EncodeMetric for Value {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        self.show(&mut encoder)
    }
    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Value {
    const TYPE: MetricType = MetricType::Gauge;
}

pub(super) type Labels = Vec<(&'static str, String)>;

/// The samples of one family. Unlike prometheus-client's `Family` it can replace all of them at once, so that no scrape
/// sees a part of them, prints them in the order of their labels, and prints one without labels without braces.
#[derive(Debug)]
pub(super) struct Samples<M>(pub Arc<RwLock<BTreeMap<Labels, M>>>);

impl<M> Clone for Samples<M> {
    fn clone(&self) -> Self {
        Samples(self.0.clone())
    }
}

impl<M> Samples<M> {
    pub fn is_empty(&self) -> bool {
        self.read().is_empty()
    }
    pub fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Labels, M>> {
        self.0.read().expect("nobody panics holding it")
    }
    pub fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Labels, M>> {
        self.0.write().expect("nobody panics holding it")
    }
}

impl<M: Default> Samples<M> {
    pub fn with(&self, labels: Labels, update: impl Fn(&M)) {
        if let Some(sample) = self.read().get(&labels) {
            return update(sample);
        }
        update(self.write().entry(labels).or_default());
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Samples<M> {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        for (labels, sample) in self.read().iter() {
            if labels.is_empty() {
                return sample.encode(encoder);
            }
            sample.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }
    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
    fn is_empty(&self) -> bool {
        self.read().is_empty()
    }
}
