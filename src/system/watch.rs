//! Noticing that the configuration file changed, however it was changed.
//!
//! Editors and configuration managers write a new file and rename it over the old one, so the directory is watched,
//! not the file. Kubernetes mounts a ConfigMap as a symbolic link through a directory `..data` that is itself a link
//! and is exchanged by rename: so every link on the way to the file is watched too.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

/// Quiet time after the last change before it is reported: writers often take several steps.
pub const DEBOUNCE: Duration = Duration::from_millis(300);

/// A writer that never pauses is reported after this long all the same.
const DEBOUNCE_MAX: Duration = Duration::from_secs(3);

/// As many links as the kernel itself follows.
const LINKS_MAX: usize = 40;

/// Watches one file by all the names that lead to it.
pub struct ConfigWatch {
    path: PathBuf,
    inotify: Inotify,
    /// What is watched: a directory's watch, and the name in it that matters; none where only the directory's own
    /// going matters.
    names: BTreeSet<(WatchDescriptor, Option<OsString>)>,
    first_change: Option<Instant>,
    last_change: Option<Instant>,
}

impl ConfigWatch {
    /// Watches `path`. The file need not exist; its nearest existing directory is watched then.
    pub fn new(path: &Path) -> io::Result<ConfigWatch> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let path = std::path::absolute(path)?;
        let mut watch = ConfigWatch { path, inotify, names: BTreeSet::new(), first_change: None, last_change: None };
        watch.arm()?;
        Ok(watch)
    }

    /// Takes in what inotify has to tell, at the time `now`.
    pub fn read(&mut self, now: Instant) -> io::Result<()> {
        let mut changed = false;
        loop {
            match self.inotify.read_events() {
                Ok(events) => changed |= events.iter().any(|event| self.concerns(event)),
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if changed {
            self.first_change.get_or_insert(now);
            self.last_change = Some(now);
            // A link may lead elsewhere now, and a directory may have come or gone.
            self.arm()?;
        }
        Ok(())
    }

    /// When [`Self::take`] will report a change, if nothing more happens.
    pub fn due(&self) -> Option<Instant> {
        Some((self.last_change? + DEBOUNCE).min(self.first_change? + DEBOUNCE_MAX))
    }

    /// Whether a change is to be acted on now. Reported once.
    pub fn take(&mut self, now: Instant) -> bool {
        let due = self.due().is_some_and(|due| due <= now);
        if due {
            self.first_change = None;
            self.last_change = None;
        }
        due
    }

    fn concerns(&self, event: &InotifyEvent) -> bool {
        // Lost events may have been ours. A watch that ended may have been of a directory on the way.
        if event.mask.intersects(AddWatchFlags::IN_Q_OVERFLOW | AddWatchFlags::IN_MOVE_SELF) {
            return true;
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            return self.names.iter().any(|(watch, _)| *watch == event.wd);
        }
        event.name.is_some() && self.names.contains(&(event.wd, event.name.clone()))
    }

    /// Watches the names that lead to the file now, and no others.
    fn arm(&mut self) -> io::Result<()> {
        let mut names = self.add_watches();
        for _ in 0..3 {
            // A directory vanished since it was looked at, so the way there is another one now.
            if !matches!(names, Err(Errno::ENOENT | Errno::ENOTDIR)) {
                break;
            }
            names = self.add_watches();
        }
        let names = names?;
        let kept = |watch: &WatchDescriptor| names.iter().any(|(other, _)| other == watch);
        let stale: BTreeSet<_> = self.names.iter().map(|(watch, _)| *watch).filter(|watch| !kept(watch)).collect();
        for watch in stale {
            // It has ended by itself when its directory was removed.
            let _ = self.inotify.rm_watch(watch);
        }
        self.names = names;
        Ok(())
    }

    fn add_watches(&self) -> nix::Result<BTreeSet<(WatchDescriptor, Option<OsString>)>> {
        let own = AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_ONLYDIR;
        let content = own | AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_CREATE;
        let mut names = BTreeSet::new();
        let (passed, named) = names_on_the_way(&self.path);
        // A second watch of a directory replaces the mask of the first, so those with more to watch come last.
        for directory in passed {
            // Of one that cannot be read, only the replacement of a whole tree goes unnoticed.
            if let Ok(watch) = self.inotify.add_watch(&directory, own) {
                names.insert((watch, None));
            }
        }
        for (directory, name) in named {
            names.insert((self.inotify.add_watch(&directory, content)?, Some(name)));
        }
        Ok(names)
    }
}

impl AsFd for ConfigWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

/// Directory and name of each symbolic link on the way to `path`, and of the file itself, or of the first part that
/// does not exist. Before them the directories that are passed. Directories in the answer contain no links.
pub(super) fn names_on_the_way(path: &Path) -> (Vec<PathBuf>, Vec<(PathBuf, OsString)>) {
    let mut passed = Vec::new();
    let mut names = Vec::new();
    let mut links = 0;
    let mut at = PathBuf::from("/");
    // Reversed, so that a link's target goes in front of what is left.
    let mut left: Vec<OsString> = path.components().rev().map(|part| part.as_os_str().to_owned()).collect();
    while let Some(part) = left.pop() {
        match Path::new(&part).components().next() {
            Some(Component::Normal(_)) => {}
            Some(Component::RootDir) => {
                at = PathBuf::from("/");
                continue;
            }
            Some(Component::ParentDir) => {
                at.pop();
                continue;
            }
            _ => continue,
        }
        let here = at.join(&part);
        match here.symlink_metadata() {
            Ok(metadata) if metadata.is_symlink() && links < LINKS_MAX => {
                links += 1;
                names.push((at.clone(), part));
                let target = std::fs::read_link(&here).unwrap_or_default();
                left.extend(target.components().rev().map(|part| part.as_os_str().to_owned()));
            }
            Ok(metadata) if metadata.is_dir() => {
                passed.push(here.clone());
                at = here;
            }
            // The file, or where the way ends for now.
            _ => {
                names.push((at.clone(), part));
                break;
            }
        }
    }
    (passed, names)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Does `change` in a directory with `config.toml` in it, and says whether the watch of `path` reports it, once.
    fn reported(path: &str, prepare: impl Fn(&Path), change: impl Fn(&Path)) -> bool {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.toml"), "a = 1").unwrap();
        prepare(dir.path());
        let mut watch = ConfigWatch::new(&dir.path().join(path)).unwrap();
        change(dir.path());
        settles(&mut watch)
    }

    fn settles(watch: &mut ConfigWatch) -> bool {
        let now = Instant::now();
        watch.read(now).unwrap();
        let early = watch.take(now + DEBOUNCE - Duration::from_millis(1));
        assert!(!early, "reported before the quiet time was over");
        let reported = watch.take(now + DEBOUNCE);
        assert!(!watch.take(now + DEBOUNCE * 2), "reported twice");
        reported
    }

    fn nothing(_: &Path) {}

    #[test]
    fn each_way_of_writing_the_file_is_noticed() {
        let check = |what: &str, want: bool, change: fn(&Path)| {
            assert_eq!(reported("config.toml", nothing, change), want, "{what}");
        };
        check("written in place", true, |dir| fs::write(dir.join("config.toml"), "a = 2").unwrap());
        check("renamed over", true, |dir| {
            fs::write(dir.join(".config.toml.swp"), "a = 2").unwrap();
            fs::rename(dir.join(".config.toml.swp"), dir.join("config.toml")).unwrap();
        });
        check("removed and linked", true, |dir| {
            fs::rename(dir.join("config.toml"), dir.join("old")).unwrap();
            fs::hard_link(dir.join("old"), dir.join("config.toml")).unwrap();
        });
        check("read", false, |dir| drop(fs::read(dir.join("config.toml")).unwrap()));
        check("another file", false, |dir| fs::write(dir.join("config.toml~"), "a = 2").unwrap());
        check("removed only", false, |dir| fs::remove_file(dir.join("config.toml")).unwrap());
    }

    #[test]
    fn a_config_map_swap_is_noticed_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let version = |n: u32| {
            let data = format!("..{n}");
            fs::create_dir(dir.path().join(&data)).unwrap();
            fs::write(dir.path().join(&data).join("config.toml"), format!("a = {n}")).unwrap();
            symlink(&data, dir.path().join("..data_tmp")).unwrap();
            fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        };
        version(1);
        symlink("..data/config.toml", dir.path().join("config.toml")).unwrap();
        let mut watch = ConfigWatch::new(&dir.path().join("config.toml")).unwrap();
        for n in 2..6 {
            version(n);
            fs::remove_dir_all(dir.path().join(format!("..{}", n - 1))).unwrap();
            assert!(settles(&mut watch), "swap {n}");
            let named = watch.names.iter().filter(|(_, name)| name.is_some()).count();
            assert_eq!(named, 3, "the link, ..data, and the file that it leads to now");
        }
        fs::write(dir.path().join("..5/config.toml"), "a = 7").unwrap();
        assert!(settles(&mut watch), "the file itself, behind the links");
    }

    #[test]
    fn a_link_into_another_directory_is_followed() {
        let prepare = |dir: &Path| {
            fs::create_dir(dir.join("real")).unwrap();
            fs::write(dir.join("real/it"), "").unwrap();
            symlink("real/it", dir.join("link.toml")).unwrap();
        };
        assert!(reported("link.toml", prepare, |dir| fs::write(dir.join("real/it"), "a = 2").unwrap()));
        assert!(!reported("link.toml", prepare, |dir| fs::write(dir.join("real/other"), "").unwrap()));
        symlink_loop_ends();
    }

    fn symlink_loop_ends() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert!(ConfigWatch::new(&dir.path().join("a")).is_ok());
    }

    #[test]
    fn a_directory_that_comes_later_or_is_exchanged_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        let mut watch = ConfigWatch::new(&etc.join("agent/config.toml")).unwrap();
        fs::create_dir_all(etc.join("agent")).unwrap();
        assert!(settles(&mut watch));
        fs::write(etc.join("agent/config.toml"), "a = 1").unwrap();
        assert!(settles(&mut watch));
        fs::rename(&etc, dir.path().join("gone")).unwrap();
        assert!(settles(&mut watch));
        fs::create_dir_all(etc.join("agent")).unwrap();
        fs::write(etc.join("agent/config.toml"), "a = 2").unwrap();
        assert!(settles(&mut watch));
    }

    #[test]
    fn a_busy_writer_is_reported_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        let mut watch = ConfigWatch::new(&path).unwrap();
        let start = Instant::now();
        let mut reports = 0;
        for step in 0..50u32 {
            fs::write(&path, step.to_string()).unwrap();
            let now = start + Duration::from_millis(100) * step;
            watch.read(now).unwrap();
            reports += u32::from(watch.take(now));
        }
        assert_eq!(reports, 1, "in five seconds of writing without a pause");
    }
}
