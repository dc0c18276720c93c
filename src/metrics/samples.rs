//! The samples of a family, and the value of a gauge.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::{MetricType, TypedMetric};

/// A gauge's value. Whole numbers are printed as such.
#[derive(Debug, Default)]
pub struct Value(AtomicU64);

impl Value {
    pub(super) fn new(value: f64) -> Self {
        Value(AtomicU64::new(value.to_bits()))
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

/// The samples of one family, by their labels.
pub(super) type ByLabels<M> = BTreeMap<Labels, M>;

/// The samples of one family. Unlike prometheus-client's `Family` it can replace all of them at once, so that no scrape
/// sees a part of them, prints them in the order of their labels, and prints one without labels without braces. It hides
/// all of them once they are too old.
#[derive(Debug)]
pub(super) struct Samples<M>(Arc<Shared<M>>);

#[derive(Debug)]
struct Shared<M> {
    samples: RwLock<ByLabels<M>>,
    /// Time since boot in milliseconds; changed only while `samples` is locked for writing.
    hidden_from: AtomicU64,
}

impl<M> Clone for Samples<M> {
    fn clone(&self) -> Self {
        Samples(self.0.clone())
    }
}

impl<M> Samples<M> {
    pub fn new() -> Self {
        Samples(Arc::new(Shared { samples: RwLock::default(), hidden_from: AtomicU64::new(u64::MAX) }))
    }
    /// Reads the samples that are not too old.
    pub fn read<T>(&self, read: impl FnOnce(&ByLabels<M>) -> T) -> T {
        let samples = self.0.samples.read().expect("nobody panics holding it");
        if self.is_too_old() { read(&BTreeMap::new()) } else { read(&samples) }
    }
    pub fn is_empty(&self) -> bool {
        self.read(BTreeMap::is_empty)
    }
    /// Changes the samples that are not too old, and shows them for this long from now on.
    pub fn write<T>(&self, shown_for: Duration, write: impl FnOnce(&mut ByLabels<M>) -> T) -> T {
        let mut samples = self.0.samples.write().expect("nobody panics holding it");
        if self.is_too_old() {
            samples.clear();
        }
        let until = since_boot().saturating_add(milliseconds(shown_for));
        self.0.hidden_from.store(until, Relaxed);
        write(&mut samples)
    }
    pub fn clear(&self) {
        self.0.samples.write().expect("nobody panics holding it").clear();
    }
    fn is_too_old(&self) -> bool {
        let hidden_from = self.0.hidden_from.load(Relaxed);
        hidden_from < u64::MAX && hidden_from <= since_boot()
    }
}

impl<M: Default> Samples<M> {
    /// Updates a sample of a family that does not age.
    pub fn with(&self, labels: Labels, update: impl Fn(&M)) {
        let updated = self.read(|samples| samples.get(&labels).map(&update)).is_some();
        if !updated {
            self.write(Duration::MAX, |samples| update(samples.entry(labels).or_default()));
        }
    }
}

impl<M: EncodeMetric + TypedMetric> EncodeMetric for Samples<M> {
    fn encode(&self, mut encoder: MetricEncoder) -> Result<(), std::fmt::Error> {
        self.read(|samples| {
            for (labels, sample) in samples {
                if labels.is_empty() {
                    return sample.encode(encoder);
                }
                sample.encode(encoder.encode_family(labels)?)?;
            }
            Ok(())
        })
    }
    fn metric_type(&self) -> MetricType {
        M::TYPE
    }
    fn is_empty(&self) -> bool {
        self.read(BTreeMap::is_empty)
    }
}

/// Time since boot in milliseconds, the time in which the machine was suspended included.
fn since_boot() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| milliseconds(time.into()))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// How long the values of a family are shown after they were read; shared, because it follows from the poll interval,
/// which is known after the families were declared.
#[derive(Clone, Debug)]
pub(super) struct Lifetime(Arc<AtomicU64>);

impl Default for Lifetime {
    /// Without end.
    fn default() -> Self {
        Lifetime(Arc::new(AtomicU64::new(u64::MAX)))
    }
}

impl Lifetime {
    pub fn set(&self, lifetime: Duration) {
        self.0.store(milliseconds(lifetime), Relaxed);
    }
    pub fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Relaxed))
    }
}
