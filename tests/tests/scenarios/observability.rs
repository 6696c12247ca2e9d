//! Rules, dashboards and runbook speak of metrics that exist, and of each other. (promtool tests what the rules do.)

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What Prometheus itself adds or makes.
const OF_PROMETHEUS: [&str; 3] = ["up", "target_info", "ALERTS"];
const LABELS_OF_PROMETHEUS: [&str; 3] = ["job", "instance", "le"];
const MODIFIERS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
const OPERATORS: [&str; 9] = ["and", "or", "unless", "bool", "offset", "atan2", "inf", "nan", "start"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every series that a scrape brings, with its labels, as docs/metrics.md has them.
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let mut series = BTreeMap::new();
    for line in read("docs/metrics.md").lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [names, kind, labels, ..] = cells[..] else { continue };
        let labels: BTreeSet<_> = words(labels).map(str::to_owned).collect();
        for name in words(names).filter(|name| name.starts_with("waybill_") || name.starts_with("rpc_")) {
            let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            for suffix in suffixes {
                series.insert(format!("{name}{suffix}"), labels.clone());
            }
        }
    }
    assert!(series.len() > 30, "the tables of docs/metrics.md are not understood");
    series
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':')).filter(|word| !word.is_empty())
}

/// What a PromQL expression asks for: the names of series, each with the labels of its selector, and the labels that it
/// groups by.
#[derive(Debug, Default, PartialEq)]
struct Query {
    series: Vec<(String, Vec<String>)>,
    grouped_by: Vec<String>,
}

/// Understands as much of PromQL as it takes: everything but names and their selectors is passed over.
fn query(text: &str) -> Query {
    let mut query = Query::default();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if let Some(end) = ['"', '\''].contains(&c).then(|| rest[1..].find(c)).flatten() {
            rest = &rest[end + 2..];
        } else if c == '[' {
            rest = rest.split_once(']').map_or("", |(_, rest)| rest);
        } else if c == '{' {
            let (selector, after) = rest[1..].split_once('}').unwrap_or((&rest[1..], ""));
            let labels = selector.split(',').filter_map(|matcher| words(matcher).next()).map(str::to_owned);
            if let Some((_, of_selector)) = query.series.last_mut() {
                of_selector.extend(labels);
            }
            rest = after;
        } else if c == '#' {
            rest = rest.split_once('\n').map_or("", |(_, rest)| rest);
        } else if c == '$' || c.is_ascii_digit() {
            // A variable of Grafana, a number or a duration.
            rest = rest[1..].trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "_{}.:".contains(c));
        } else if c.is_ascii_alphabetic() || c == '_' || c == ':' {
            let name = words(rest).next().unwrap_or_default();
            rest = rest[name.len()..].trim_start();
            if MODIFIERS.contains(&name) {
                if let Some((labels, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
                    query.grouped_by.extend(words(labels).map(str::to_owned));
                    rest = after;
                }
            } else if !rest.starts_with('(') && !is_aggregated(rest) && !OPERATORS.contains(&name) {
                query.series.push((name.to_owned(), Vec::new()));
            }
        } else {
            rest = &rest[c.len_utf8()..];
        }
    }
    query
}

/// Whether what follows a name shows that it is an aggregation: `sum by (…) (…)`.
fn is_aggregated(rest: &str) -> bool {
    let next = rest.split(|c: char| !c.is_ascii_alphanumeric()).next();
    next.is_some_and(|next| ["by", "without"].contains(&next))
}

const RULES: [&str; 2] =
    ["deploy/observability/prometheus/rules.yml", "deploy/observability/prometheus/alerts.yml"];

/// The expressions of a rule file, in one line or in a block.
fn expressions_of_rules(text: &str) -> Vec<String> {
    let mut expressions = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let indent = line.len() - line.trim_start().len();
        let Some(expression) = line.trim_start().strip_prefix("expr: ") else { continue };
        let mut expression = expression.trim_start_matches('|').to_owned();
        while let Some(more) = lines.next_if(|line| line.len() - line.trim_start().len() > indent) {
            expression.push('\n');
            expression.push_str(more);
        }
        expressions.push(expression);
    }
    expressions
}

fn values_of<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim_start().trim_start_matches("- ").strip_prefix(key)).collect()
}

fn recorded() -> BTreeSet<String> {
    RULES
        .iter()
        .flat_map(|path| {
            values_of(&read(path), "record: ").into_iter().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

fn dashboards() -> Vec<(String, Value)> {
    let folder = root().join("deploy/observability/grafana/dashboards");
    let mut dashboards: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let dashboard = serde_json::from_slice(&fs::read(path).unwrap());
            (name.clone(), dashboard.unwrap_or_else(|error| panic!("{name}: {error}")))
        })
        .collect();
    dashboards.sort_by(|(a, _), (b, _)| a.cmp(b));
    dashboards
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().into_iter().flatten()
}

/// The queries of a dashboard: those of its panels, and those that fill its variables.
fn expressions_of_dashboard(dashboard: &Value) -> Vec<String> {
    let of_panels = panels(dashboard)
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .filter_map(|target| target["expr"].as_str().map(str::to_owned));
    let of_variables =
        dashboard["templating"]["list"].as_array().into_iter().flatten().filter_map(|variable| {
            let query = variable["query"].as_str()?.strip_prefix("label_values(")?.strip_suffix(')')?;
            let (series, label) = query.rsplit_once(',')?;
            Some(format!("sum by ({label}) ({series})"))
        });
    of_panels.chain(of_variables).collect()
}

#[test]
fn rules_and_dashboards_ask_for_metrics_and_labels_that_exist() {
    let (documented, recorded) = (documented(), recorded());
    let labels: BTreeSet<_> =
        documented.values().flatten().map(String::as_str).chain(LABELS_OF_PROMETHEUS).collect();
    let of_rules = RULES.iter().flat_map(|path| {
        expressions_of_rules(&read(path))
            .into_iter()
            .map(|expression| (path.to_string(), expression))
            .collect::<Vec<_>>()
    });
    let dashboards = dashboards();
    assert_eq!(dashboards.len(), 4);
    let of_dashboards = dashboards.iter().flat_map(|(name, dashboard)| {
        expressions_of_dashboard(dashboard).into_iter().map(|expression| (name.clone(), expression))
    });
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (file, expression) in of_rules.chain(of_dashboards) {
        let asked = query(&expression);
        count += asked.series.len();
        for (name, selected_by) in &asked.series {
            let known = documented.get(name);
            if known.is_none() && !recorded.contains(name) && !OF_PROMETHEUS.contains(&name.as_str()) {
                wrong.push(format!("{file}: no metric {name} in {expression}"));
            }
            for label in selected_by {
                let has = known.is_none_or(|labels| labels.contains(label));
                if !has && !LABELS_OF_PROMETHEUS.contains(&label.as_str()) {
                    wrong.push(format!("{file}: {name} has no label {label}"));
                }
            }
        }
        let unknown = asked.grouped_by.iter().filter(|label| !labels.contains(label.as_str()));
        wrong.extend(unknown.map(|label| format!("{file}: no label {label} in {expression}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 100, "only {count} series were found");
}

#[test]
fn the_runbook_names_metrics_that_exist() {
    let (documented, recorded) = (documented(), recorded());
    let runbook = read("docs/runbook.md");
    let named: Vec<_> = words(&runbook)
        .filter(|word| word.contains("waybill_") || word.starts_with("rpc_server_"))
        .map(|word| word.trim_end_matches(':'))
        .collect();
    let unknown: Vec<_> =
        named.iter().filter(|name| !documented.contains_key(**name) && !recorded.contains(**name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
    assert!(named.len() > 15);
}

/// Alerts by name, with the severities of each.
fn alerts() -> BTreeMap<String, BTreeSet<String>> {
    let mut alerts: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for rule in read(RULES[1]).split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap_or_default().to_owned();
        let severity = words(rule.split_once("severity:").expect("a severity").1).next().unwrap_or_default();
        alerts.entry(name).or_default().insert(severity.to_owned());
    }
    alerts
}

#[test]
fn each_alert_has_its_section_in_the_runbook_and_each_section_its_alert() {
    let runbook = read("docs/runbook.md");
    let sections: BTreeMap<_, _> = runbook
        .split("\n## ")
        .skip(1)
        .map(|section| {
            let (title, text) = section.split_once('\n').expect("a title and a text");
            (title.to_owned(), text)
        })
        .collect();
    let alerts = alerts();
    assert_eq!(alerts.keys().collect::<Vec<_>>(), sections.keys().collect::<Vec<_>>());
    for (alert, severities) in &alerts {
        let said = sections[alert].lines().nth(1).unwrap_or_default();
        let told: BTreeSet<_> = words(said).filter(|word| ["page", "ticket"].contains(word)).collect();
        assert_eq!(told, severities.iter().map(String::as_str).collect(), "{alert}: {said:?}");
        for part in ["**Means:**", "**Hurt:**", "**First look:**", "**Fix:**"] {
            assert!(sections[alert].contains(part), "{alert} lacks {part}");
        }
    }
    let urls: BTreeSet<_> =
        values_of(&read(RULES[1]), "runbook_url: ").into_iter().map(str::to_owned).collect();
    let anchors = alerts.keys().map(|alert| format!("docs/runbook.md#{}", alert.to_lowercase()));
    assert_eq!(urls, anchors.collect());
}

#[test]
fn each_alert_is_tested_to_fire_and_provoked() {
    let provoked = read("tests/tests/scenarios/alerts.rs");
    let folder = root().join("deploy/observability/prometheus/tests");
    let tests: String = fs::read_dir(folder)
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    for alert in alerts().keys() {
        let named = format!("alertname: {alert}\n");
        let fires = tests.split(&named).skip(1).any(|after| after.trim_start().starts_with("exp_alerts:"));
        assert!(fires, "no test lets {alert} fire");
        assert!(provoked.contains(&format!("\"{alert}\"")), "nobody provokes {alert}");
    }
}

#[test]
fn dashboards_can_be_loaded_side_by_side() {
    let mut uids = BTreeSet::new();
    for (name, dashboard) in dashboards() {
        let uid = dashboard["uid"].as_str().unwrap_or_default().to_owned();
        assert!(!uid.is_empty() && uids.insert(uid), "{name}: uid missing, or that of another");
        assert!(dashboard["title"].is_string() && dashboard["schemaVersion"].is_u64(), "{name}");
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for panel in panels(&dashboard) {
            let title = &panel["title"];
            assert!(ids.insert(panel["id"].as_u64().expect("an id")), "{name}: id of {title} is taken");
            let at = |side: &str| panel["gridPos"][side].as_u64().expect("a place");
            assert!(at("x") + at("w") <= 24, "{name}: {title} is too wide");
            for cell in
                (at("y")..at("y") + at("h")).flat_map(|y| (at("x")..at("x") + at("w")).map(move |x| (x, y)))
            {
                assert!(taken.insert(cell), "{name}: {title} lies over another panel");
            }
            for target in panel["targets"].as_array().into_iter().flatten() {
                assert!(target["refId"].is_string(), "{name}: {title}");
            }
        }
    }
}

#[test]
fn names_are_found_in_promql() {
    let asked = query(
        "sum(d) by (le) or sum by (step, le) (rate(a_bucket{step=~\"$step\",x!='b{c'}[5m:1m])) > on () group_left () b:c_d:max offset 15m \
         or vector(0) unless $__interval * 3",
    );
    let series = vec![
        ("d".to_owned(), vec![]),
        ("a_bucket".to_owned(), vec!["step".to_owned(), "x".to_owned()]),
        ("b:c_d:max".to_owned(), vec![]),
    ];
    assert_eq!(
        asked,
        Query { series, grouped_by: vec!["le".to_owned(), "step".to_owned(), "le".to_owned()] }
    );
}
