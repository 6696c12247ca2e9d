//! What people read: answers on stdout, everything else on stderr.

use std::io::{self, ErrorKind, Write};

/// Writes lines of an answer. The error is the caller's to return: whoever read may have gone (`| head`), and
/// then there is no point in going on.
pub(crate) fn answer(lines: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{lines}")?;
    stdout.flush()
}

/// Whether the answer could not be written because its reader had seen enough.
pub(crate) fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

/// Writes lines about what is under way. `dev` goes on when nobody reads them any more.
pub(crate) fn tell(lines: &str) {
    drop(answer(lines));
}

/// Writes a complaint to stderr. When even that cannot be written there is nowhere left to say so.
pub(crate) fn warn(lines: &str) {
    drop(writeln!(io::stderr().lock(), "{lines}"));
}
