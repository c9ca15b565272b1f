//! The Unix socket by which processes of this host reach the control port: root, and who is in the group `ebpfsentinel`.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::unistd::{Gid, Group};

/// Who is in it may use the socket.
pub const GROUP: &str = "ebpfsentinel";

/// The socket's name in the file system. Removed when dropped, unless it is another's by then.
pub struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
    group: Option<Gid>,
}

impl SocketFile {
    /// Listens at `path`. The socket is made in `private`, where nobody else comes, and appears with its owner and mode
    /// in one step, in place of one that nobody listens on any more. Anything else that is there stays: an error.
    pub fn bind(path: &Path, private: &Path) -> Result<(SocketFile, UnixListener)> {
        SocketFile::bind_for(path, private, GROUP)
    }

    fn bind_for(path: &Path, private: &Path, group_name: &str) -> Result<(SocketFile, UnixListener)> {
        let name = || format!("listening on {} (agent.socket)", path.display());
        give_way(path).with_context(name)?;
        let own = private.join("control.sock");
        let listener = UnixListener::bind(&own).with_context(|| format!("binding {}", own.display()))?;
        fs::set_permissions(&own, fs::Permissions::from_mode(0o660)).with_context(name)?;
        let mut group = find_group(group_name).with_context(|| format!("looking for the group {group_name}"))?;
        if let Some(gid) = group
            && let Err(e) = std::os::unix::fs::chown(&own, None, Some(gid.as_raw()))
        {
            log::warn!("control: giving {} to the group {group_name}: {e}; only root can use it", path.display());
            group = None;
        }
        let made = fs::symlink_metadata(&own).with_context(name)?;
        fs::rename(&own, path).with_context(name)?;
        let file = SocketFile { path: path.to_owned(), inode: (made.dev(), made.ino()), group };
        Ok((file, listener))
    }

    /// The group that may use it beside its owner.
    pub fn group(&self) -> Option<Gid> {
        self.group
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let there = fs::symlink_metadata(&self.path);
        if there.is_ok_and(|there| (there.dev(), there.ino()) == self.inode)
            && let Err(e) = fs::remove_file(&self.path)
        {
            log::warn!("control: removing {}: {e}", self.path.display());
        }
    }
}

/// The group of this name, if there is one. A host without a file of groups has none (getgrnam_r(3): these errors say so).
pub fn find_group(name: &str) -> nix::Result<Option<Gid>> {
    match Group::from_name(name) {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        found => Ok(found?.map(|group| group.gid)),
    }
}

/// An error when something at `path` must not be replaced.
fn give_way(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
        Ok(there) if !there.file_type().is_socket() => bail!("there is something else than a socket"),
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!("another process listens there"),
        // Left behind by one that was killed.
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => Err(e).context("a socket is there, and it cannot be told whether anybody listens"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_socket_is_replaced_and_anything_else_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (private, path) = (dir.path().join("private"), dir.path().join("a.sock"));
        fs::create_dir(&private).unwrap();
        let bind = || SocketFile::bind(&path, &private).map_err(|e| format!("{e:#}"));

        let (file, listener) = bind().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let error = bind().err().unwrap();
        assert!(error.contains("a.sock (agent.socket)") && error.ends_with("another process listens there"), "{error}");
        drop(listener);
        let (second, _listener) = bind().unwrap();
        drop(file);
        assert!(path.exists(), "the first one removed the second one's");
        drop(second);
        assert!(!path.exists());

        let grouped = |name: &str| SocketFile::bind_for(&path, &private, name).unwrap().0;
        let daemon = Group::from_name("daemon").unwrap().expect("every Linux has it").gid;
        let file = grouped("daemon");
        assert_eq!((file.group(), fs::metadata(&path).unwrap().gid()), (Some(daemon), daemon.as_raw()));
        drop(file);
        assert_eq!(grouped("no-such-group").group(), None);

        fs::write(&path, "mine").unwrap();
        assert!(bind().err().unwrap().ends_with("there is something else than a socket"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }
}
