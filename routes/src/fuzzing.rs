//! The property that holds for any route file. The fuzz target in `fuzz/` calls it with libFuzzer's input, the tests below with
//! its seeds and with random text.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "it tells by panicking")]

use std::collections::HashSet;
use std::fmt::Write;

use proto::orders::v1::{OrderStatus, Route};

use crate::Routes;

/// A file defines routes that keep the rules, or is refused with faults of one line each. The routes, written as a file, are the
/// same again.
pub fn routes_file(bytes: &[u8]) {
    let routes = match Routes::parse(bytes) {
        Ok(routes) => routes,
        Err(faults) => {
            let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
            assert!(!lines.is_empty());
            for line in &lines {
                assert!(!line.is_empty() && !line.contains(char::is_control), "{line:?}");
            }
            assert_eq!(faults.to_string(), lines.join("\n"));
            return;
        }
    };
    let names: Vec<_> = routes.names().collect();
    assert!((1..=32).contains(&names.len()));
    assert!(names.contains(&routes.default_name()));
    assert_eq!(routes.route(""), routes.route(routes.default_name()));
    let mut steps = HashSet::new();
    let mut file = format!("default: \"{}\"\nroutes:\n", routes.default_name());
    for name in names {
        let route = routes.route(name).unwrap();
        assert_eq!(route.name, name);
        check(&route);
        write(&route, &mut file);
        steps.extend(route.steps.into_iter().map(|step| step.name));
    }
    let listed = routes.steps();
    assert_eq!(listed.len(), steps.len());
    assert!(listed.into_iter().all(|step| steps.contains(step)));
    assert_eq!(Routes::parse(file.as_bytes()), Ok(routes), "{file}");
}

fn check(route: &Route) {
    assert!((1..=16).contains(&route.steps.len()));
    let steps: HashSet<_> = route.steps.iter().map(|step| &step.name).collect();
    assert_eq!(steps.len(), route.steps.len());
    for name in steps.into_iter().chain([&route.name]) {
        assert!((1..=32).contains(&name.len()) && name.as_bytes()[0].is_ascii_lowercase(), "{name}");
        let is_in_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        assert!(name.bytes().all(is_in_name), "{name}");
    }
    let statuses: Vec<_> = route.steps.iter().map(|step| step.leads_to()).collect();
    let changes: Vec<_> = statuses.iter().filter(|status| **status != OrderStatus::Unspecified).collect();
    assert_eq!(changes.iter().collect::<HashSet<_>>().len(), changes.len());
    assert_eq!(statuses.last(), Some(&OrderStatus::Fulfilled));
    for step in &route.steps {
        assert_ne!(step.name, "end");
        assert!(step.compensates || !matches!(step.name.as_str(), "inventory" | "payment"));
    }
}

/// Writes a route as the file has it.
fn write(route: &Route, file: &mut String) {
    writeln!(file, "  \"{}\":", route.name).unwrap();
    for step in &route.steps {
        write!(file, "    - {{name: \"{}\", compensates: {}", step.name, step.compensates).unwrap();
        let status = step.leads_to().as_str_name().trim_start_matches("ORDER_STATUS_");
        match status {
            "UNSPECIFIED" => file.push_str("}\n"),
            status => writeln!(file, ", status: {status}}}").unwrap(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WORDS: [&str; 36] = [
        "routes:",
        "default:",
        " ",
        "\n",
        "\n  ",
        "\n    - ",
        "a",
        "b:",
        "{",
        "}",
        "[",
        "]",
        ", ",
        ": ",
        "name: ",
        "inventory",
        "payment",
        "fulfilment",
        "compensates: ",
        "status: ",
        "true",
        "null",
        "FULFILLED",
        "PAID",
        "1",
        "&x ",
        "*x",
        "<<: ",
        "!!str ",
        "? ",
        "\"",
        "'",
        "|",
        "---",
        "\u{feff}",
        "é",
    ];
    const STEPS: [&str; 6] =
        ["inventory", "payment", "fulfilment", "fraud", "end", "{name: warehouse, compensates: true}"];
    const STATUSES: [&str; 3] = ["RESERVED", "PAID", "FULFILLED"];

    #[test]
    fn every_seed_passes_its_fuzz_target() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/seeds/routes_file");
        let seeds: Vec<_> = std::fs::read_dir(folder).unwrap().map(|seed| seed.unwrap().path()).collect();
        assert!(!seeds.is_empty());
        for seed in seeds {
            eprintln!("{}", seed.display());
            routes_file(&std::fs::read(seed).unwrap());
        }
    }

    /// Text of what a route file consists of.
    fn words() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(&WORDS[..]), 0..60).prop_map(|words| words.concat())
    }

    /// A file that is valid, or nearly.
    fn file() -> impl Strategy<Value = String> {
        let mapping = ("[a-d]", any::<bool>(), prop::sample::select(&STATUSES[..])).prop_map(
            |(name, compensates, status)| {
                format!("{{name: {name}, compensates: {compensates}, status: {status}}}")
            },
        );
        let step = prop_oneof![prop::sample::select(&STEPS[..]).prop_map(str::to_owned), mapping];
        let route = ("[r-u]", prop::collection::vec(step, 0..3)).prop_map(|(name, steps)| {
            let steps: String = steps.iter().map(|step| format!("{step}, ")).collect();
            format!("  {name}: [{steps}fulfilment]\n")
        });
        prop::collection::vec(route, 0..4)
            .prop_map(|routes| format!("default: r\nroutes:\n{}", routes.concat()))
    }

    proptest! {
        #[test]
        fn no_text_violates_the_property(text in prop_oneof![".*", words(), file()]) {
            routes_file(text.as_bytes());
        }
    }
}
