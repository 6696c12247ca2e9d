//! How this program was called, so that the commands it shows work when they are pasted.

use std::env;
use std::path::{Path, PathBuf};

/// The path by which this program was started, as a shell takes it; relative if below the working directory.
pub(crate) fn program_path() -> String {
    let path = env::args_os().next().filter(|path| !path.is_empty()).map(PathBuf::from);
    let path = path.unwrap_or_else(|| PathBuf::from("waybill"));
    match env::current_dir() {
        Ok(here) => shown(&path, &here),
        // The working directory was deleted, so the path is shown as it is.
        Err(_) => quoted(&path),
    }
}

fn shown(path: &Path, here: &Path) -> String {
    match path.strip_prefix(here) {
        // A shell would look up a bare name on PATH.
        Ok(below) if below.components().count() == 1 => quoted(&Path::new(".").join(below)),
        Ok(below) => quoted(below),
        Err(_) => quoted(path),
    }
}

fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.chars().all(|c| c.is_alphanumeric() || "/._-+".contains(c)) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_shown_as_a_shell_in_the_working_directory_takes_it() {
        for (path, text) in [
            ("waybill", "waybill"),
            ("target/release/waybill", "target/release/waybill"),
            ("/src/target/release/waybill", "target/release/waybill"),
            ("/src/waybill", "./waybill"),
            ("/bin/waybill", "/bin/waybill"),
            ("/src/it's mine/waybill", r"'it'\''s mine/waybill'"),
        ] {
            assert_eq!(shown(Path::new(path), Path::new("/src")), text);
        }
    }
}
