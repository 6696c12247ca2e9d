//! Copies of parts of the repository, to build in.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

/// Makes `to` the same as `from`, and touches nothing that is the same already, nor what has one of the names in
/// `except`: what builds leave there.
pub fn mirror(from: &Path, to: &Path, except: &[&str]) {
    if !from.is_dir() {
        let content = fs::read(from).expect("file");
        if fs::read(to).ok().as_ref() != Some(&content) {
            fs::create_dir_all(to.parent().expect("folder")).expect("folder");
            fs::write(to, content).expect("file");
        }
        return;
    }
    fs::create_dir_all(to).expect("folder");
    let names = |folder: &Path| -> HashSet<_> {
        let entries = fs::read_dir(folder).expect("folder");
        let names = entries.map(|entry| entry.expect("entry").file_name());
        names.filter(|name| except.iter().all(|other| name != other)).collect()
    };
    let wanted = names(from);
    for name in names(to).difference(&wanted) {
        let path = to.join(name);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.expect("removal");
    }
    for name in wanted {
        mirror(&from.join(&name), &to.join(&name), except);
    }
}
