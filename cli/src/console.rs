//! Output for people: answers on stdout, everything else on stderr.

use std::io::{self, ErrorKind, IsTerminal, Write};

use program::plain_text::is_plain;

/// Text from elsewhere as it may be shown in a line: what would do something to the terminal, or to the line, instead
/// of being read is escaped.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if is_plain(c) => plain.push(c),
            c if c.is_control() => plain.extend(c.escape_default()),
            c => plain.extend(c.escape_unicode()),
        }
    }
    plain
}

/// Lines without terminal control characters.
fn plain_lines(lines: &str) -> String {
    lines.split('\n').map(plain).collect::<Vec<_>>().join("\n")
}

/// Writes lines of an answer. The caller returns the error: the reader may be gone (`| head`), and then the command
/// ends.
pub(crate) fn answer(lines: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{}", plain_lines(lines))?;
    stdout.flush()
}

/// Writes what the columns of an answer are, for people alone: programs read the lines below.
pub(crate) fn heading(line: &str) -> io::Result<()> {
    if io::stdout().is_terminal() { answer(line) } else { Ok(()) }
}

/// Whether the answer could not be written because its reader had seen enough.
pub(crate) fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Writes progress lines. `dev` continues without a reader.
pub(crate) fn tell(lines: &str) {
    drop(answer(lines));
}

/// Writes a complaint to stderr. When even that cannot be written there is nowhere left to say so.
pub(crate) fn warn(lines: &str) {
    drop(writeln!(io::stderr().lock(), "{}", plain_lines(lines)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        assert_eq!(plain("\u{1b}[2J\u{9b}1m\r\nÖl\u{202e}"), "\\u{1b}[2J\\u{9b}1m\\r\\nÖl\\u{202e}");
        assert_eq!(plain_lines("one\ntwo\u{7}\n"), "one\ntwo\\u{7}\n");
    }
}
