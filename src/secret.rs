//! Secrets: read from the configuration, a file or a systemd credential; shown nowhere.
//!
//! A secret key `password` is written as one of three: `password = "..."`, `password_file = "/path"`, or
//! `password_credential = "NAME"`, a file of systemd's `$CREDENTIALS_DIRECTORY` (`LoadCredential=`). Files are read when
//! the configuration is, so a reload takes a changed one over. One line end at the end of a file does not count.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, Serializer};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

use crate::guarded::{self, Holds};
use crate::written::{Field, Reader};

/// Longest secret, in bytes.
pub const SECRET_MAX: usize = 64 << 10;
/// The line end at the end of a file, in bytes.
const LINE_END_MAX: usize = 2;

/// What stands where a secret is not shown.
pub const MASK: &str = "***";

/// A text that is never shown. Its memory is overwritten when it is dropped; equality takes the same time wherever the
/// texts differ.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// A secret of this text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself. Hand it to whom it is for, and to no log.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Reads the secret `name` from `name`, `name_file` or `name_credential`. None of them is `None`; more than one, and a
    /// file that cannot be used, is an error that is noted.
    pub fn read(r: &mut Reader<'_>, name: &'static str) -> Option<Secret> {
        let keys = keys_of(name);
        Secret::read_keys(name, &r.key(name), &r.key(keys.file), &r.key(keys.credential))
    }

    /// [`Secret::read`], and an error where there is none.
    pub fn read_required(r: &mut Reader<'_>, name: &'static str) -> Option<Secret> {
        let keys = keys_of(name);
        let fields = [r.key(name), r.key(keys.file), r.key(keys.credential)];
        if !fields.iter().any(Field::is_present) {
            fields[0].error(format!("missing; write {name}, {} or {}", keys.file, keys.credential));
        }
        Secret::read(r, name)
    }

    fn read_keys(name: &str, value: &Field<'_>, file: &Field<'_>, credential: &Field<'_>) -> Option<Secret> {
        // All three are asked for, so that all three are known keys.
        let (text, path, credential_name) = (text_of(value), file.text(), credential.text());
        let mut written = [value, file, credential].into_iter().filter(|field| field.is_present());
        let first = written.next()?;
        if let Some(second) = written.next() {
            second.error(format!("{} stands here already; {name} is given once", first.path()));
            return None;
        }
        let read = |field: &Field<'_>, path: &Path| {
            read_file(path).inspect_err(|why| field.error(format!("{}: {why}", path.display()))).ok()
        };
        if let Some(text) = text {
            let secret = Secret::new(text);
            return check(&secret.0).inspect_err(|why| value.error(why)).ok().map(|()| secret);
        }
        if let Some(path) = path {
            if !Path::new(path).is_absolute() {
                file.error(format!("\"{}\" is not an absolute path", path.escape_debug()));
                return None;
            }
            return read(file, Path::new(path));
        }
        let path = credential_path(credential_name?, std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from));
        read(credential, &path.inspect_err(|why| credential.error(why)).ok()?)
    }
}

/// [`Field::text`], whose error does not show what was written.
fn text_of<'r>(field: &Field<'r>) -> Option<&'r str> {
    if field.is_present() && field.as_text().is_none() {
        field.error("expected a string");
        return None;
    }
    field.text()
}

struct Keys {
    file: &'static str,
    credential: &'static str,
}

/// The other two names of a secret key. The reader wants names that live as long as the program: they are made once for
/// each name in the code, which are few.
fn keys_of(name: &'static str) -> Keys {
    static KNOWN: Mutex<BTreeMap<&'static str, (&'static str, &'static str)>> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let (file, credential) = *known.entry(name).or_insert_with(|| {
        let leaked = |end: &str| -> &'static str { Box::leak(format!("{name}_{end}").into_boxed_str()) };
        (leaked("file"), leaked("credential"))
    });
    Keys { file, credential }
}

fn credential_path(name: &str, directory: Option<PathBuf>) -> Result<PathBuf, String> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(format!("\"{}\" is not the name of a credential", name.escape_debug()));
    }
    let directory = directory.ok_or_else(|| {
        "$CREDENTIALS_DIRECTORY is not set: systemd sets it for a unit with LoadCredential=".to_owned()
    })?;
    Ok(directory.join(name))
}

/// Reads a secret from a file that not everybody on this host may read.
pub fn read_file(path: &Path) -> Result<Secret, String> {
    let bytes = guarded::read(path, Holds::Secret, SECRET_MAX + LINE_END_MAX)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| "not valid UTF-8".to_owned())?;
    let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
    check(text)?;
    Ok(Secret::new(text))
}

fn check(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if text.len() > SECRET_MAX {
        return Err(format!("longer than {SECRET_MAX} bytes; that is no secret"));
    }
    Ok(())
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

impl Eq for Secret {}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl JsonSchema for Secret {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "const": MASK, "description": "A secret; it is never shown." })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::written::Document;

    fn read(toml: &str) -> Result<Option<String>, String> {
        let document = Document::toml("c", toml.as_bytes()).unwrap();
        let outcome = document.read(|root| {
            let mut r = root.table().unwrap();
            let secret = Secret::read(&mut r, "key");
            r.finish();
            secret
        });
        let secret = outcome.into_result().map_err(|errors| errors[0].to_string())?;
        Ok(secret.map(|secret| secret.expose().to_owned()))
    }

    fn file(folder: &Path, mode: u32, bytes: &[u8]) -> String {
        let path = folder.join(format!("{mode:o}-{}", bytes.len()));
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_secret_is_given_in_one_of_three_ways() {
        let folder = tempfile::tempdir().unwrap();
        let good = file(folder.path(), 0o640, b"s3cret \r\n");
        assert_eq!(read("key = 'a'"), Ok(Some("a".into())));
        assert_eq!(read(""), Ok(None));
        assert_eq!(read(&format!("key_file = '{good}'")), Ok(Some("s3cret ".into())));
        let check = |toml: &str, part: &str| {
            let error = read(toml).unwrap_err();
            assert!(error.contains(part) && !error.contains("s3cret"), "{toml}: {error}");
        };
        check(&format!("key = 's3cret'\nkey_file = '{good}'"), "key_file: key stands here already");
        check("key = ''", "it is empty");
        check("key = ['s3cret']", "expected a string");
        check("key_file = 'relative'", "not an absolute path");
        check(&format!("key_file = '{}'", folder.path().display()), "not a regular file");
        check("key_file = '/nowhere/at/all'", "/nowhere/at/all: cannot be read: No such file or directory");
        check(&format!("key_file = '{}'", file(folder.path(), 0o644, b"s3cret")), "mode 0644");
        check(&format!("key_file = '{}'", file(folder.path(), 0o602, b"s3cret1")), "run chmod o= ");
        check(&format!("key_file = '{}'", file(folder.path(), 0o600, b"\n")), "it is empty");
        check(&format!("key_file = '{}'", file(folder.path(), 0o600, b"\xffs3cret")), "not valid UTF-8");
        check(&format!("key_file = '{}'", file(folder.path(), 0o600, &[b'x'; SECRET_MAX + 1])), "longer than");
        check("key_credential = '../x'", "not the name of a credential");
        check("keyfile = 'x'", "unknown key; did you mean key_file?");
    }

    #[test]
    fn a_credential_is_a_file_of_systemds_folder() {
        let path = |name: &str| credential_path(name, Some(PathBuf::from("/run/credentials/e.service")));
        assert_eq!(path("smtp"), Ok(PathBuf::from("/run/credentials/e.service/smtp")));
        for bad in ["", ".", "..", "a/b", ".x"] {
            assert!(path(bad).is_err(), "{bad}");
        }
        assert!(credential_path("smtp", None).unwrap_err().contains("LoadCredential="));
    }

    #[test]
    fn a_secret_is_shown_nowhere() {
        let secret = Secret::new("s3cret");
        assert_eq!((format!("{secret:?}"), serde_json::to_string(&secret).unwrap()), ("***".into(), "\"***\"".into()));
        assert!(secret == Secret::new("s3cret") && secret != Secret::new("s3creT") && secret != Secret::new("s3cre"));
    }
}
