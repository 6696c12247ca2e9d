//! What a program says at /metrics.

use std::collections::{BTreeMap, BTreeSet};

/// The metrics of one process at one moment.
#[derive(Clone, Debug, Default)]
pub struct Scrape {
    /// Types by name.
    pub types: BTreeMap<String, String>,
    /// All samples. Those of a histogram have names of their own: `_bucket`, `_sum`, `_count`.
    pub samples: Vec<Sample>,
}

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The number.
    pub value: f64,
}

impl Scrape {
    /// Reads the text format of Prometheus, as far as our programs write it.
    pub fn read(text: &str) -> Self {
        let mut scrape = Self::default();
        for line in text.lines() {
            if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a type");
                assert!(scrape.types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
            } else if !line.starts_with('#') {
                scrape.samples.push(sample(line));
            }
        }
        scrape
    }

    /// The sum of the samples that have these labels, and perhaps others; `None` if there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &&Sample| labels.iter().all(|(key, value)| sample.label(key) == *value);
        let found: Vec<_> = self.samples.iter().filter(|sample| sample.name == name).filter(has).collect();
        (!found.is_empty()).then(|| found.iter().map(|sample| sample.value).sum())
    }

    /// The names of the labels that samples of a metric have, but those of buckets.
    pub fn labels(&self, name: &str) -> BTreeSet<String> {
        let of = |sample: &&Sample| sample.metric(&self.types) == name;
        let labels = self.samples.iter().filter(of).flat_map(|sample| sample.labels.keys());
        labels.filter(|label| *label != "le").cloned().collect()
    }
}

impl Sample {
    /// A label; empty if there is none.
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }

    /// The name of its metric.
    fn metric(&self, types: &BTreeMap<String, String>) -> &str {
        let stems = ["_bucket", "_sum", "_count"].into_iter().filter_map(|end| self.name.strip_suffix(end));
        let histogram =
            stems.into_iter().find(|stem| types.get(*stem).is_some_and(|kind| kind == "histogram"));
        histogram.unwrap_or(&self.name)
    }
}

fn sample(line: &str) -> Sample {
    let (series, value) = line.rsplit_once(' ').expect("a number");
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
    let label = |label: &str| {
        let (name, value) = label.split_once("=\"").expect("a label");
        (name.to_owned(), value.trim_end_matches('"').to_owned())
    };
    let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
    Sample { name: name.to_owned(), labels: labels.map(label).collect(), value }
}
