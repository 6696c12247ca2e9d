//! The reference of settings is what the programs say of themselves.

use std::fmt::Write as _;
use std::process::Command;

use harness::binary;

const PAGE: &str = "../docs/configuration.md";
/// What follows is made by this test.
const MADE: &str = "<!-- From here on: what --help of each program says. UPDATE_DOCS=1 writes it anew, see CONTRIBUTING.md -->\n";

/// Programs, and what a heading calls them.
const PROGRAMS: [(&str, &[&str]); 12] = [
    ("the gateway", &["waybill-gateway"]),
    ("inventory", &["waybill-inventory"]),
    ("payment", &["waybill-payment"]),
    ("fulfilment", &["waybill-fulfilment"]),
    ("a step of your own", &["waybill-step"]),
    ("the payment sandbox", &["waybill-payment-sandbox"]),
    ("`waybill dev`", &["waybill", "dev"]),
    ("`waybill order`", &["waybill", "order"]),
    ("`waybill dead-letter`", &["waybill", "dead-letter"]),
    ("`waybill stock`", &["waybill", "stock"]),
    ("`waybill provision`", &["waybill", "provision"]),
    ("`waybill health`", &["waybill", "health"]),
];

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Setting {
    flag: String,
    variable: String,
    default: String,
    meaning: String,
}

fn help(command: &[&str]) -> String {
    // What is set here is no default.
    let output = Command::new(binary(command[0])).args(&command[1..]).arg("--help").env_clear().output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

/// The settings of a help text, in its order.
fn settings(help: &str) -> Vec<Setting> {
    let (_, options) = help.split_once("\nOptions:\n").unwrap();
    let mut settings = Vec::<Setting>::new();
    for line in options.lines().map(str::trim) {
        if line.starts_with("--") || line.starts_with("-h,") || line.starts_with("-V,") {
            let (flag, meaning) = line.split_once("  ").unwrap_or((line, ""));
            let flag = flag.split_once(" <").map_or(flag, |(flag, _)| flag).to_owned();
            let meaning = meaning.trim().to_owned();
            settings.push(Setting { flag, meaning, ..Setting::default() });
        } else if let Some(setting) = settings.last_mut() {
            setting.meaning = format!("{} {line}", setting.meaning).trim().to_owned();
        }
    }
    settings.retain(|setting| setting.flag.starts_with("--"));
    for setting in &mut settings {
        setting.variable = take(&mut setting.meaning, "[env: ");
        setting.variable.truncate(setting.variable.find('=').unwrap_or(setting.variable.len()));
        setting.default = take(&mut setting.meaning, "[default: ");
        let values = take(&mut setting.meaning, "[possible values: ");
        if !values.is_empty() {
            write!(setting.meaning, ": {values}").unwrap();
        }
        setting.meaning = setting.meaning.replace(" Possible values: - ", ": ").replace(" - ", "; ");
    }
    settings
}

/// Takes `[what: …]` out of a text.
fn take(text: &mut String, what: &str) -> String {
    let Some(start) = text.find(what) else { return String::new() };
    let end = start + text[start..].find(']').unwrap();
    let taken = text[start + what.len()..end].to_owned();
    text.replace_range(start..=end, "");
    *text = text.trim().to_owned();
    taken
}

/// A heading for each group of programs that share settings, those that share most first, and those for people last.
fn reference() -> String {
    let mut groups: Vec<(Vec<&str>, Vec<Setting>)> = Vec::new();
    let all: Vec<_> = PROGRAMS.iter().map(|(name, command)| (*name, settings(&help(command)))).collect();
    for setting in all.iter().flat_map(|(_, settings)| settings) {
        let has = |(_, settings): &&(&str, Vec<Setting>)| settings.contains(setting);
        let names: Vec<_> = all.iter().filter(has).map(|(name, _)| *name).collect();
        match groups.iter_mut().find(|(programs, _)| *programs == names) {
            Some((_, settings)) if settings.contains(setting) => {}
            Some((_, settings)) => settings.push(setting.clone()),
            None => groups.push((names, vec![setting.clone()])),
        }
    }
    let is_for_people = |programs: &[&str]| programs.iter().all(|program| program.starts_with('`'));
    groups.sort_by_key(|(programs, _)| (is_for_people(programs), std::cmp::Reverse(programs.len())));
    let mut page = String::new();
    for (programs, settings) in groups {
        let (last, others) = programs.split_last().unwrap();
        let title =
            if others.is_empty() { (*last).to_owned() } else { format!("{} and {last}", others.join(", ")) };
        let (first, rest) = title.split_at(1);
        writeln!(page, "\n## {}{rest}\n", first.to_uppercase()).unwrap();
        page.push_str("| variable | flag | default | meaning |\n|---|---|---|---|\n");
        for Setting { flag, variable, default, meaning } in settings {
            let code = |text: &str| {
                if text.is_empty() { String::new() } else { format!("`{text}`").replace('|', "\\|") }
            };
            let (flag, variable, default) = (code(&flag), code(&variable), code(&default));
            writeln!(page, "| {variable} | {flag} | {default} | {} |", meaning.replace('|', "\\|")).unwrap();
        }
    }
    page
}

#[test]
fn the_reference_of_settings_is_what_the_programs_say() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (begin, _) = page.split_once(MADE).unwrap();
    let wanted = format!("{begin}{MADE}{}", reference());
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(PAGE, &wanted).unwrap();
    }
    let page = std::fs::read_to_string(PAGE).unwrap();
    assert_eq!(page, wanted, "{PAGE} is old: run this test with UPDATE_DOCS=1");
}
