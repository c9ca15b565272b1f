//! Files that command the agent or hold its secrets: read without ever waiting, and not when the wrong people may use
//! them.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use zeroize::Zeroizing;

/// What is in a file, and so what others must not do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// What the agent does, or whom it trusts: not everybody may write to it.
    Orders,
    /// Not everybody may read it either.
    Secret,
}

/// Reads a file of at most `max` bytes. Its memory is overwritten when it is dropped.
///
/// # Errors
/// Why not, to stand behind the file's name.
pub fn read(path: &Path, holds: Holds, max: usize) -> Result<Zeroizing<Vec<u8>>, String> {
    let why = |error: io::Error| {
        let text = error.to_string();
        format!("cannot be read: {}", text.split(" (os error").next().unwrap_or_default())
    };
    // Without O_NONBLOCK the open of a FIFO would wait for a writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(why)?;
    let metadata = file.metadata().map_err(why)?;
    if !metadata.is_file() {
        return Err("not a regular file".to_owned());
    }
    let (forbidden, may, so, right) = match holds {
        Holds::Orders => (0o002, "write to", "so command the agent", "o-w"),
        Holds::Secret => (0o007, "read or change", "it holds a secret", "o="),
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & forbidden != 0 {
        let path = path.display();
        return Err(format!(
            "everybody on this host may {may} it (mode {mode:04o}), and {so}; run chmod {right} {path}"
        ));
    }
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let room = if holds == Holds::Secret { max } else { max.min(metadata.len() as usize) };
    let mut bytes = Zeroizing::new(Vec::with_capacity(room + 2));
    file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(why)?;
    if bytes.len() > max {
        let most = if max < 1 << 20 { format!("{} KiB", max >> 10) } else { format!("{} MiB", max >> 20) };
        return Err(format!("{} bytes are more than the {most} that are read", metadata.len().max(bytes.len() as u64)));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn who_may_use_a_file_depends_on_what_it_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"abc").unwrap();
        let read = |mode: u32, holds, max| {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            super::read(&path, holds, max).map(|bytes| bytes.to_vec())
        };
        for (mode, holds) in [(0o644, Holds::Orders), (0o664, Holds::Orders), (0o640, Holds::Secret)] {
            assert_eq!(read(mode, holds, 3).as_deref(), Ok(&b"abc"[..]), "{mode:o}");
        }
        for (mode, holds, right) in [
            (0o602, Holds::Orders, "o-w "),
            (0o604, Holds::Secret, "o= "),
            (0o602, Holds::Secret, "o= "),
            (0o601, Holds::Secret, "o= "),
        ] {
            let why = read(mode, holds, 3).unwrap_err();
            assert!(why.contains(&format!("mode {mode:04o}")) && why.contains(right), "{why}");
        }
        assert!(read(0o600, Holds::Secret, 2).unwrap_err().starts_with("3 bytes are more than"));
        let nowhere = super::read(&folder.path().join("none"), Holds::Orders, 3);
        assert_eq!(nowhere.unwrap_err(), "cannot be read: No such file or directory");
        assert_eq!(super::read(folder.path(), Holds::Orders, 3).unwrap_err(), "not a regular file");
    }
}
