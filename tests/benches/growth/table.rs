//! The measurements as a table of Markdown: a row for each measurement, a column for each stage.

use hdrhistogram::Histogram;

/// All measurements of one stage. Each stage has the same, in the same order.
pub(crate) struct Column {
    size: u64,
    measured: Vec<(String, f64)>,
}

impl Column {
    pub(crate) fn new(size: u64) -> Self {
        Self { size, measured: Vec::new() }
    }

    /// Adds a measurement, and shows it as progress.
    pub(crate) fn add(&mut self, name: &str, value: f64) {
        eprintln!("{} orders: {name}: {}", grouped(self.size), short(value));
        self.measured.push((name.to_owned(), value));
    }

    /// Adds p50 and p99 of latencies in microseconds.
    pub(crate) fn latencies(&mut self, name: &str, latencies_us: &Histogram<u64>) {
        for percentile in [50, 99] {
            let value = latencies_us.value_at_percentile(percentile.into()) as f64 / 1e3;
            self.add(&format!("{name}, p{percentile} (ms)"), value);
        }
    }
}

/// Prints values, and in parentheses their ratios to the first stage.
pub(crate) fn print(columns: &[Column]) {
    let head = |column: &Column| format!(" {} orders |", grouped(column.size));
    println!("\n| measurement |{}", columns.iter().map(head).collect::<String>());
    println!("|---|{}", "---|".repeat(columns.len()));
    for (row, (name, first)) in columns[0].measured.iter().enumerate() {
        let cells = columns.iter().enumerate().map(|(n, column)| {
            let (other, value) = &column.measured[row];
            assert_eq!(name, other, "the same measurements at each stage");
            let ratio = if n == 0 { String::new() } else { format!(" ({:.2})", value / first) };
            format!(" {}{ratio} |", short(*value))
        });
        println!("| {name} |{}", cells.collect::<String>());
    }
}

/// About three digits.
fn short(value: f64) -> String {
    let decimals = if value < 1.0 {
        3
    } else if value < 10.0 {
        2
    } else if value < 100.0 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}")
}

/// With a comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}
