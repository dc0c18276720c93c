//! Metrics whose values are pushed, which means that code sets them between scrapes: the handles through which code
//! sets samples, and the expiry of the samples.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

use super::model::{self, Declaration, Family, Kind, Sample, Value};

/// List of the IPC exporter's pushed metrics, which grows while the areas declare their metrics, in the order of
/// METRICS.md.
pub(super) struct Registry {
    pub pushed: Vec<Arc<PushedFamily>>,
    /// Time for which a value that is read from the node at each poll is exported.
    pub poll_lifetime: Duration,
}

impl Registry {
    /// Declares a metric.
    pub fn add(&mut self, declaration: Declaration) -> Arc<PushedFamily> {
        let lifetime = if declaration.of_node { self.poll_lifetime } else { Duration::MAX };
        let pushed = Arc::new(PushedFamily { declaration, lifetime, state: Mutex::default() });
        self.pushed.push(pushed.clone());
        pushed
    }
}

/// Declares the metrics of an area, which is a group of metrics on one subject, for example the active chain. Generates
/// a struct with a field for each metric, which is the handle through which code sets the values of the metric.
macro_rules! area {
    ($(#[$doc:meta])* pub struct $Area:ident { $($field:ident: $Handle:ty = $declaration:expr;)* }) => {
        $(#[$doc])*
        #[allow(missing_docs, reason = "each field's documentation is its metric's help text")]
        pub struct $Area {
            $(pub $field: $Handle,)*
        }

        impl $Area {
            pub(super) fn declare(registry: &mut super::pushed::Registry) -> Self {
                $Area { $($field: <$Handle>::new(registry.add($declaration)),)* }
            }
        }
    };
}
pub(super) use area;

/// A metric family whose samples are pushed through a handle.
pub(super) struct PushedFamily {
    pub declaration: Declaration,
    /// Time for which values that are set at each poll are exported: two poll intervals for values read from the node,
    /// unlimited for all other values.
    pub lifetime: Duration,
    state: Mutex<SampleState>,
}

/// The current samples of a pushed family, and the time at which they expire.
#[derive(Default)]
struct SampleState {
    /// Sorted by labels. A scrape clones the `Arc` and releases the lock. An update of the samples therefore does not
    /// wait while the scrape writes its response.
    samples: Arc<Vec<Sample>>,
    /// Time at which the samples expire, in milliseconds since boot; `None` if they do not expire.
    expires_at: Option<u64>,
}

impl PushedFamily {
    /// Returns the family for a handle of this kind with this number of labels. Panics in debug builds if the
    /// declaration has another kind or another number of labels.
    fn declared_as(self: Arc<Self>, kind: Kind, labels: usize) -> Arc<Self> {
        let declared = &self.declaration;
        debug_assert_eq!((declared.kind, declared.labels.len()), (kind, labels), "{}", declared.name);
        self
    }

    /// Locks and returns the current samples, after removing them if they have expired.
    fn state(&self) -> MutexGuard<'_, SampleState> {
        let mut state = self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if state.expires_at.is_some_and(|time| time <= since_boot()) {
            *state = SampleState::default();
        }
        state
    }

    /// The family with its current samples.
    pub fn family(&self) -> Family {
        Family { declaration: self.declaration, samples: self.state().samples.clone() }
    }

    /// Removes all samples.
    pub fn clear(&self) {
        *self.state() = SampleState::default();
    }

    /// Applies `update` to the sample with these label values, which is created with the value `new` if it does not
    /// exist. All samples of the family expire `shown_for` after this call.
    fn update(&self, shown_for: Duration, labels: &[&str], new: Value, update: impl FnOnce(&mut Value)) {
        let mut state = self.state();
        state.show_for(shown_for);
        let samples = Arc::make_mut(&mut state.samples);
        let place = samples
            .binary_search_by(|sample| sample.labels.iter().map(String::as_str).cmp(labels.iter().copied()));
        let place = place.unwrap_or_else(|place| {
            samples.insert(place, Sample::new(labels.iter().copied(), new));
            place
        });
        update(&mut samples[place].value);
    }

    /// Replaces all samples with `samples`. If two samples have the same labels, the later one is used.
    fn replace<L: IntoIterator<Item: Into<String>>>(
        &self,
        shown_for: Duration,
        samples: impl IntoIterator<Item = (L, f64)>,
    ) {
        let sorted: BTreeMap<Vec<String>, f64> = samples
            .into_iter()
            .map(|(labels, value)| (labels.into_iter().map(Into::into).collect(), value))
            .collect();
        let samples =
            sorted.into_iter().map(|(labels, value)| Sample { labels, value: Value::Number(value) });
        let mut state = self.state();
        state.show_for(shown_for);
        state.samples = Arc::new(samples.collect());
    }

    /// Replaces all samples with `samples`, unless `samples` is empty.
    fn replace_if_any<L: IntoIterator<Item: Into<String>>>(
        &self,
        samples: impl IntoIterator<Item = (L, f64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_some() {
            self.replace(self.lifetime, samples);
        }
    }

    fn get(&self, labels: &[&str]) -> Option<f64> {
        let samples = self.state().samples.clone();
        samples.iter().find(|sample| sample.labels == labels)?.value.number()
    }

    /// Adds `amount` to the total in the sample with these label values. The sample does not expire.
    fn add(&self, labels: &[&str], amount: Value) {
        let zero = match amount {
            Value::Count(_) => Value::Count(0),
            _ => Value::Number(0.0),
        };
        self.update(Duration::MAX, labels, zero, |total| match (total, amount) {
            (Value::Count(total), Value::Count(amount)) => *total = total.saturating_add(amount),
            (Value::Number(total), Value::Number(amount)) => *total += amount,
            _ => debug_assert!(false, "{} has totals of one type", self.declaration.name),
        });
    }
}

impl SampleState {
    fn show_for(&mut self, time: Duration) {
        self.expires_at = since_boot().checked_add(milliseconds(time));
    }
}

/// Time since boot in milliseconds, including the time during which the machine was suspended.
fn since_boot() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| milliseconds(time.into()))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Handle through which code sets a gauge without labels. The gauge is not exported until a value is set.
pub struct Gauge(Arc<PushedFamily>);

impl Gauge {
    pub(super) fn new(pushed: Arc<PushedFamily>) -> Self {
        Gauge(pushed.declared_as(Kind::Gauge, 0))
    }

    /// Sets the value. If `value` is `None` or not finite, because the node returned no value, the last value is kept
    /// until it expires.
    pub fn set(&self, value: Option<impl Into<f64>>) {
        self.set_for(self.0.lifetime, value);
    }
    /// Sets a value from a call that is made less often than the polls. The value expires after `shown_for` instead of
    /// two poll intervals.
    pub fn set_for(&self, shown_for: Duration, value: Option<impl Into<f64>>) {
        if let Some(value) = value.map(Into::into).filter(|value: &f64| value.is_finite()) {
            self.0.update(shown_for, &[], Value::Number(value), |shown| *shown = Value::Number(value));
        }
    }
    /// The current value; `None` if the gauge is absent.
    pub fn get(&self) -> Option<f64> {
        self.0.get(&[])
    }
    /// Like [`set`](Self::set), but removes the current value if `value` is `None` or not finite.
    pub fn replace(&self, value: Option<f64>) {
        if value.is_none_or(|value| !value.is_finite()) {
            self.clear();
        }
        self.set(value);
    }
    /// Removes the value.
    pub fn clear(&self) {
        self.0.clear();
    }
}

/// Handle through which code sets the samples of a gauge with `N` labels.
pub struct GaugeVec<const N: usize>(Arc<PushedFamily>);

impl<const N: usize> GaugeVec<N> {
    pub(super) fn new(pushed: Arc<PushedFamily>) -> Self {
        GaugeVec(pushed.declared_as(Kind::Gauge, N))
    }

    /// Replaces all samples with `samples`. If `samples` is empty, the gauge becomes absent.
    pub fn replace<'a>(&self, samples: impl IntoIterator<Item = ([&'a str; N], f64)>) {
        self.0.replace(self.0.lifetime, samples);
    }
    /// Counts how often each set of label values occurs, and replaces all samples with these counts.
    pub fn replace_with_counts<L: Into<String> + Ord>(&self, occurrences: impl Iterator<Item = [L; N]>) {
        let mut counts: BTreeMap<[L; N], f64> = BTreeMap::new();
        for labels in occurrences {
            *counts.entry(labels).or_default() += 1.0;
        }
        self.0.replace(self.0.lifetime, counts);
    }
    /// Sets one sample. All samples of the gauge get a new expiry time, because the samples of a family expire
    /// together.
    pub fn set(&self, labels: [&str; N], value: f64) {
        self.0.update(self.0.lifetime, &labels, Value::Number(value), |shown| *shown = Value::Number(value));
    }
    /// Like [`Self::replace`], for a call that may have failed or may not have returned some of the values: if no
    /// sample has a value, the last samples are kept until they expire.
    pub fn replace_if_any<'a>(&self, samples: impl IntoIterator<Item = ([&'a str; N], Option<f64>)>) {
        let known = samples.into_iter().filter_map(|(labels, value)| Some((labels, value?)));
        self.0.replace_if_any(known);
    }
    /// Like [`Self::replace`], for a call that is made less often than the polls. The samples expire after `shown_for`
    /// instead of two poll intervals.
    pub fn replace_for<'a>(
        &self,
        shown_for: Duration,
        samples: impl IntoIterator<Item = ([&'a str; N], f64)>,
    ) {
        self.0.replace(shown_for, samples);
    }
    /// The current value of the sample with these label values; `None` if there is no such sample.
    pub fn get(&self, labels: [&str; N]) -> Option<f64> {
        self.0.get(&labels)
    }
    /// The label names and values of each current sample.
    pub fn labels_present(&self) -> Vec<Vec<(&'static str, String)>> {
        let Family { declaration, samples } = self.0.family();
        let labels =
            |sample: &Sample| declaration.labels.iter().copied().zip(sample.labels.clone()).collect();
        samples.iter().map(labels).collect()
    }
}

/// Handle through which code counts events in a counter without labels. The counter is absent until the exporter begins
/// to count the events, because a count of 0 before this time would wrongly show that no events occurred.
pub struct Counter(Arc<PushedFamily>);

impl Counter {
    pub(super) fn new(pushed: Arc<PushedFamily>) -> Self {
        Counter(pushed.declared_as(Kind::Counter, 0))
    }

    /// Starts to export the counter, at 0 if it has no value yet. Called when the exporter begins to count the events
    /// of this counter.
    pub fn start(&self) {
        self.inc_by(0u64);
    }
    /// Counts one event.
    pub fn inc(&self) {
        self.inc_by(1u64);
    }
    /// Adds a number of events or a time in seconds to the counter.
    pub fn inc_by(&self, amount: impl Into<Value>) {
        self.0.add(&[], amount.into());
    }
    /// Removes the counter. Called when the exporter no longer counts the events of this counter.
    pub fn stop(&self) {
        self.0.clear();
    }
    /// Sets the counter to a total that the node counts and returns. If `total` is `None`, the last total is kept until
    /// it expires.
    pub fn set(&self, total: Option<u64>) {
        if let Some(total) = total {
            self.0.update(self.0.lifetime, &[], Value::Count(total), |shown| *shown = Value::Count(total));
        }
    }
    /// The current total; `None` if the counter is absent.
    pub fn get(&self) -> Option<f64> {
        self.0.get(&[])
    }
}

/// Handle through which code counts events in a counter with `N` labels.
pub struct CounterVec<const N: usize>(Arc<PushedFamily>);

impl<const N: usize> CounterVec<N> {
    pub(super) fn new(pushed: Arc<PushedFamily>) -> Self {
        CounterVec(pushed.declared_as(Kind::Counter, N))
    }

    /// Adds a number of events to the sample with these label values. Adding zero creates the sample if it does not
    /// exist.
    pub fn inc_by(&self, labels: [&str; N], events: u64) {
        self.0.add(&labels, Value::Count(events));
    }
    /// Replaces all samples with these totals, which the node counts and returns. If `totals` is empty, the last
    /// samples are kept until they expire.
    pub fn replace_if_any<'a>(&self, totals: impl IntoIterator<Item = ([&'a str; N], f64)>) {
        self.0.replace_if_any(totals);
    }
}

/// Handle through which code adds observed values to a histogram without labels. The histogram is absent until
/// [`Histogram::start`] is called.
pub struct Histogram(Arc<PushedFamily>);

impl Histogram {
    pub(super) fn new(pushed: Arc<PushedFamily>) -> Self {
        Histogram(pushed)
    }

    /// Starts to export the histogram, without observations at first. Called when the exporter begins to observe
    /// values.
    pub fn start(&self) {
        let Kind::Histogram(bounds) = self.0.declaration.kind else { return };
        self.0.update(Duration::MAX, &[], model::HistogramValue::empty(bounds).into(), |_| {});
    }
    /// Adds one observed value. Does nothing if [`start`](Self::start) was not called before.
    pub fn observe(&self, value: f64) {
        let Kind::Histogram(bounds) = self.0.declaration.kind else { return };
        let mut state = self.0.state();
        if let Some(Value::Histogram(histogram)) =
            Arc::make_mut(&mut state.samples).first_mut().map(|sample| &mut sample.value)
        {
            histogram.observe(bounds, value);
        }
    }
}
