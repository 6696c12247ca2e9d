//! Reading a child's log.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

const POLL_INTERVAL: Duration = Duration::from_millis(20);
const LAST_LINES: usize = 10;
const LAST_BYTES: u64 = 8 * 1024;

/// Waits until one of our programs logs this message, and gives the line's fields. The caller bounds the wait.
pub(super) async fn wait_for(log: &Path, message: &str) -> Value {
    loop {
        // A log that does not exist yet does not have the line.
        let found = fs::read_to_string(log).ok().and_then(|text| fields_of(&text, message));
        if let Some(fields) = found {
            return fields;
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Where the log is, and its last lines.
pub(super) fn log_tail(log: &Path) -> String {
    match last_lines(log) {
        Ok(lines) if lines.is_empty() => format!("its log {} is empty", log.display()),
        Ok(lines) => format!("last lines of {}:\n  {}", log.display(), lines.join("\n  ")),
        Err(error) => format!("its log {} cannot be read: {error}", log.display()),
    }
}

fn fields_of(text: &str, message: &str) -> Option<Value> {
    text.lines().find_map(|line| {
        let mut line: Value = serde_json::from_str(line).ok()?;
        (line["fields"]["message"] == message).then(|| line["fields"].take())
    })
}

fn last_lines(log: &Path) -> io::Result<Vec<String>> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_BYTES)))?;
    let mut tail = Vec::new();
    file.take(LAST_BYTES).read_to_end(&mut tail)?;
    let text = String::from_utf8_lossy(&tail);
    let lines: Vec<_> = text.lines().collect();
    let first = lines.len().saturating_sub(LAST_LINES);
    Ok(lines[first..].iter().map(|&line| line.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_by_its_message() {
        let text = r#"not json
{"level":"INFO","fields":{"message":"connected","grpc_addr":"127.0.0.1:1"}}
{"level":"INFO","fields":{"message":"listening","grpc_addr":"127.0.0.1:2"}}
{"level":"INFO","fie"#;
        assert_eq!(fields_of(text, "listening").unwrap()["grpc_addr"], "127.0.0.1:2");
        assert_eq!(fields_of(text, "processing"), None);
    }

    #[test]
    fn the_log_tail_is_the_end_of_the_log() {
        let log = tempfile::NamedTempFile::new().unwrap();
        let lines: Vec<_> = (0..5000).map(|line| format!("line {line}")).collect();
        fs::write(log.path(), lines.join("\n")).unwrap();
        let words = log_tail(log.path());
        assert!(words.ends_with("  line 4999"));
        assert_eq!(words.lines().count(), 1 + LAST_LINES);
    }

    #[test]
    fn an_empty_log_is_said_to_be_empty() {
        let log = tempfile::NamedTempFile::new().unwrap();
        assert!(log_tail(log.path()).starts_with("its log"));
    }
}
