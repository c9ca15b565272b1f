//! Where files lie that are reached by links.
//!
//! Landlock judges a file by where it lies, not by the links that have led to it. Whoever renews a file that is reached by
//! links puts the next one beside it and has a link lead there (`live/cert.pem -> ../archive/cert2.pem`), or has the link
//! to its directory lead to another (`..data -> ..2026_11_30`). So what has to be open is where links lead.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::system::watch::names_on_the_way;

/// Entries of a directory that are looked at.
const ENTRIES_MAX: usize = 4096;

/// The directories, without links in their own paths, in which another file may take the place of `path`: that in which it
/// lies, and for each link on the way that in which the link's target lies. Never the root. Of a link to a directory it is
/// left out if it is one of the root's own (`/var/lock -> /run/lock` would open all of /run), unless the link lies there
/// itself. Empty where nothing is.
pub fn beside(path: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    if !path.exists() {
        return found;
    }
    for (at, name) in names_on_the_way(path).1 {
        let here = at.join(name);
        let Ok(target) = fs::read_link(&here) else {
            found.insert(at);
            continue;
        };
        let place = at.join(target).parent().and_then(|place| place.canonicalize().ok());
        found.extend(place.filter(|place| !here.is_dir() || *place == at || place.components().count() > 2));
    }
    found.remove(Path::new("/"));
    found
}

/// [`beside`] for what is in a directory, one level deep.
pub fn beside_entries(directory: &Path) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().take(ENTRIES_MAX);
    entries.flat_map(|entry| beside(&entry.path())).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Makes files and links (`name -> target`) in a directory of its own.
    fn made(lines: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        for line in lines {
            let (name, target) = line.split_once(" -> ").map_or((*line, None), |(name, target)| (name, Some(target)));
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            match target {
                Some(target) => symlink(target, root.join(name)).unwrap(),
                None => fs::write(root.join(name), "text").unwrap(),
            }
        }
        (folder, root)
    }

    #[track_caller]
    fn check(lines: &[&str], path: &str, want: &[&str]) {
        let (_folder, root) = made(lines);
        let found = beside(&root.join(path));
        let found: Vec<&str> = found.iter().map(|at| at.strip_prefix(&root).unwrap().to_str().unwrap()).collect();
        assert_eq!(found, want, "{path}");
    }

    #[test]
    fn directories_in_which_the_next_file_may_lie() {
        check(&["a/key.pem"], "a/key.pem", &["a"]);
        // certbot
        check(&["archive/x/key1.pem", "live/x/key.pem -> ../../archive/x/key1.pem"], "live/x/key.pem", &["archive/x"]);
        // Kubernetes, by the name that is meant to be used, and by the directory that changes.
        let volume = ["v/..2026/key.pem", "v/..data -> ..2026", "v/key.pem -> ..data/key.pem"];
        check(&volume, "v/key.pem", &["v", "v/..2026"]);
        check(&volume, "v/..data/key.pem", &["v", "v/..2026"]);
        // A chain, and a directory that is switched.
        check(&["c/file", "b/two -> ../c/file", "a/one -> ../b/two"], "a/one", &["b", "c"]);
        check(&["releases/3/file", "current -> releases/3"], "current/file", &["releases", "releases/3"]);
        // A directory is open itself; only where its link leads is told.
        check(&["d/file"], "d", &[]);
        check(&["e/f/file", "d -> e/f"], "d", &["e"]);
    }

    #[test]
    fn what_leads_nowhere_opens_nothing() {
        check(&["a/file"], "a/other", &[]);
        check(&["a/link -> ../b/none", "b/file"], "a/link", &[]);
        check(&["a/loop -> loop"], "a/loop", &[]);
    }

    #[test]
    fn the_root_and_its_own_directories_are_not_opened_for_a_link_to_a_directory() {
        let (_folder, root) = made(&["up -> /", "run -> /proc/sys", "sys -> /sys/kernel"]);
        assert_eq!(beside(&root.join("up/proc/self")), BTreeSet::from([PathBuf::from("/proc")]));
        assert_eq!(beside(&root.join("run/kernel/ostype")), BTreeSet::from([PathBuf::from("/proc/sys/kernel")]));
        assert_eq!(beside(&root.join("sys")), BTreeSet::new());
        assert_eq!(beside(&root.join("up")), BTreeSet::new());
    }

    #[test]
    fn entries_of_a_directory_are_looked_at() {
        let (_folder, root) = made(&["far/one", "farther/two", "d/a -> ../far/one", "d/b -> ../farther/two", "d/c"]);
        let found = beside_entries(&root.join("d"));
        assert_eq!(found, ["d", "far", "farther"].iter().map(|name| root.join(name)).collect());
    }
}
