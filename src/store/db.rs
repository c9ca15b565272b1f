//! A file of tables: the one place that speaks to redb.
//!
//! Reads are snapshots and do not wait for the writer; there is one writer, the owner thread. A file that cannot be
//! understood is moved aside and never written over. After an error of the disk redb refuses everything until the file
//! is opened anew, which [`Db::mend`] does.
//!
//! Each commit says in the file what of it is free ("quick repair"), so that opening it after `kill -9` or a power cut
//! takes a millisecond at any size; without that, redb reads all of it first (0.7 s for 570 MB that are in memory). It
//! costs a second sync of each commit, 1.1 ms instead of 0.6 on an SSD; there are five in a second when much comes.
//! Only after a crash in the middle of compacting is the whole file read.
//!
//! Keys order as bytes do, so numbers in them are big-endian.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, TryLockError};
use std::time::{Duration, Instant, SystemTime};

use redb::backends::FileBackend;
use redb::{Builder, Database, ReadTransaction, ReadableDatabase, TableDefinition, WriteTransaction};

/// Memory that redb may take for pages of one file.
const CACHE_BYTES: usize = 32 << 20;
/// What is left free on the disk: below it nothing is written, as the rest of the host needs the space more.
pub const FREE_MIN: u64 = 16 << 20;
/// Kept aside on the disk, in a file beside each store, to remove records with when nothing else is free.
pub const RESERVE: u64 = 4 << 20;
/// Damaged files that are kept; older ones are deleted when another one comes.
const ASIDE_MAX: usize = 3;
/// How long a reader waits while the file is compacted or mended.
const READER_PATIENCE: Duration = Duration::from_secs(2);
/// Most bytes that compacting moves about: it takes some seconds then, in which readers wait and nothing is written. What
/// is free in a larger file is used again, so it grows no further than it once had to.
const COMPACT_MAX: u64 = 512 << 20;
/// Smaller files are left as they are.
const COMPACT_MIN: u64 = 8 << 20;

const META: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("meta");

/// Why a store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// There is so little room on the disk that nothing was tried.
    #[error("{0}")]
    NoRoom(String),
    /// The disk has no room, or refuses.
    #[error("{0}")]
    Disk(String),
    /// The file is not what was written.
    #[error("the file is damaged: {0}")]
    Damaged(String),
    /// The file is closed, for a moment or until the disk is well again.
    #[error("the store is not open now; try again")]
    Closed,
}

impl From<redb::Error> for DbError {
    fn from(error: redb::Error) -> DbError {
        match error {
            redb::Error::Io(error) => DbError::from(error),
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => DbError::Closed,
            redb::Error::DatabaseAlreadyOpen => DbError::Disk("another process has the file open".to_owned()),
            redb::Error::Backend(error) => DbError::Disk(error.to_string()),
            other => DbError::Damaged(other.to_string()),
        }
    }
}

impl From<io::Error> for DbError {
    fn from(error: io::Error) -> DbError {
        match error.kind() {
            // No redb file, or one whose end is missing.
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => DbError::Damaged(error.to_string()),
            _ => DbError::Disk(error.to_string()),
        }
    }
}

macro_rules! from_redb {
    ($($error:ident)*) => {
        $(impl From<redb::$error> for DbError {
            fn from(error: redb::$error) -> DbError {
                DbError::from(redb::Error::from(error))
            }
        })*
    };
}

from_redb!(DatabaseError TransactionError TableError StorageError CommitError CompactionError SetDurabilityError);

/// A file of tables.
pub struct Db {
    path: PathBuf,
    kind: &'static str,
    schema: u32,
    database: RwLock<Option<Database>>,
    /// A reader met what cannot be.
    suspect: AtomicBool,
    /// The reserve is there, or there was no making it.
    has_reserve: AtomicBool,
    /// Records that were removed since the last look for room to give back.
    removed: AtomicU64,
    /// So many that it is worth a look.
    may_shrink: AtomicBool,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

impl Db {
    /// The file at `path`, not opened yet: [`Db::mend`] does. `kind` and `schema` stand in it; a file of another kind, or of a
    /// schema that this program does not know, counts as damaged.
    pub fn new(path: PathBuf, kind: &'static str, schema: u32) -> Db {
        Db {
            path,
            kind,
            schema,
            database: RwLock::new(None),
            suspect: AtomicBool::new(false),
            has_reserve: AtomicBool::new(false),
            removed: AtomicU64::new(0),
            may_shrink: AtomicBool::new(false),
        }
    }

    /// Notes that retention has removed so many records of those of which so many are left. By and by there may be room to
    /// give back.
    pub fn note_removed(&self, records: u64, left: u64) {
        let removed = self.removed.fetch_add(records, Ordering::Relaxed) + records;
        // On a full disk less is worth a look.
        if removed >= left / 2 || self.has_room().is_err() {
            self.may_shrink.store(true, Ordering::Relaxed);
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.lock_for_reading().is_ok_and(|database| database.is_some())
    }

    /// Whether a reader has met damage since the file was opened.
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Closes the file if it is open, and opens it; `check` has each page looked at. Where a damaged file was, there is a new
    /// one then; the answer is what became of the old one.
    pub fn mend(&self, check: bool) -> Result<Option<String>, DbError> {
        let mut slot = self.database.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(database) = slot.take() {
            // Readers that are under way get an error. What close says of the old handle does not matter any more.
            drop(guarded(|| Ok(database.close()?)));
        }
        let opened = match self.open(check) {
            Err(DbError::Damaged(why)) => {
                let aside = self.set_aside()?;
                let told = format!(
                    "{} was damaged ({why}) and is {} now; a new one was begun",
                    self.path.display(),
                    aside.display()
                );
                log::error!("{told}");
                self.open(false).map(|database| (database, Some(told)))
            }
            opened => opened.map(|database| (database, None)),
        };
        let (database, told) = opened?;
        *slot = Some(database);
        self.suspect.store(false, Ordering::Relaxed);
        Ok(told)
    }

    fn open(&self, check: bool) -> Result<Database, DbError> {
        let (database, was_read_whole) = self.open_noting(check)?;
        if was_read_whole {
            log::info!("{}: it was not closed, and all of it had to be read", self.path.display());
            // So that the next one need not, should there be no commit until then.
            if self.has_room().is_ok() {
                guarded(|| Ok(begin_write(&database)?.commit()?))?;
            }
        }
        Ok(database)
    }

    /// The other answer: whether all of it was read first.
    fn open_noting(&self, check: bool) -> Result<(Database, bool), DbError> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.path)?;
        let was_read_whole = Arc::new(AtomicBool::new(false));
        let database = guarded(|| {
            let mut builder = Builder::new();
            builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(check);
            let noted = was_read_whole.clone();
            builder.set_repair_callback(move |_| noted.store(true, Ordering::Relaxed));
            Ok(builder.create_with_backend(FileBackend::new(file)?)?)
        })?;
        guarded(|| self.check_schema(&database))?;
        Ok((database, was_read_whole.load(Ordering::Relaxed)))
    }

    fn check_schema(&self, database: &Database) -> Result<(), DbError> {
        let begun = {
            let read = database.begin_read()?;
            match read.open_table(META) {
                Err(redb::TableError::TableDoesNotExist(_)) if read.list_tables()?.next().is_none() => None,
                table => {
                    let table = table?;
                    let text = |key| Ok::<_, DbError>(table.get(key)?.map(|value| value.value().to_vec()));
                    Some((text("kind")?, text("schema")?))
                }
            }
        };
        let schema = self.schema.to_be_bytes();
        match begun {
            Some((Some(kind), Some(found))) if kind == self.kind.as_bytes() && found == schema => Ok(()),
            Some((kind, found)) => {
                let kind = kind.map(|kind| String::from_utf8_lossy(&kind).into_owned()).unwrap_or_default();
                let found = found.and_then(|found| found.try_into().ok()).map(u32::from_be_bytes).unwrap_or_default();
                Err(DbError::Damaged(format!(
                    "it is of kind \"{kind}\", schema {found}, not \"{}\", schema {}",
                    self.kind, self.schema
                )))
            }
            None => {
                let write = begin_write(database)?;
                {
                    let mut table = write.open_table(META)?;
                    table.insert("kind", self.kind.as_bytes())?;
                    table.insert("schema", schema.as_slice())?;
                }
                Ok(write.commit()?)
            }
        }
    }

    /// Moves the file to a name with the time in it.
    fn set_aside(&self) -> io::Result<PathBuf> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let prefix = format!("{name}.damaged-");
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let time = crate::logging::rfc3339(since.as_nanos() as u64).replace([':', '.'], "-");
        let aside = directory.join(format!("{prefix}{time}"));
        fs::rename(&self.path, &aside)?;
        let mut kept: Vec<PathBuf> = fs::read_dir(directory)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|other| other.to_string_lossy().starts_with(&prefix)))
            .collect();
        // The names order as the times do.
        kept.sort();
        for old in kept.iter().rev().skip(ASIDE_MAX) {
            log::warn!("{} is deleted: {ASIDE_MAX} damaged files are kept", old.display());
            fs::remove_file(old)?;
        }
        Ok(aside)
    }

    /// Compacting and mending take the file from its readers; they wait for so long only.
    fn lock_for_reading(&self) -> Result<RwLockReadGuard<'_, Option<Database>>, DbError> {
        let deadline = Instant::now() + READER_PATIENCE;
        loop {
            match self.database.try_read() {
                Ok(database) => return Ok(database),
                Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() > deadline => return Err(DbError::Closed),
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    /// Reads what was committed last. Any thread.
    pub fn read<R>(&self, read: impl FnOnce(&ReadTransaction) -> Result<R, DbError>) -> Result<R, DbError> {
        let result = guarded(|| {
            let transaction = {
                let database = self.lock_for_reading()?;
                database.as_ref().ok_or(DbError::Closed)?.begin_read()?
            };
            read(&transaction)
        });
        self.note_damage(result)
    }

    fn note_damage<R>(&self, result: Result<R, DbError>) -> Result<R, DbError> {
        if matches!(result, Err(DbError::Damaged(_))) {
            self.suspect.store(true, Ordering::Relaxed);
        }
        result
    }

    /// Writes and commits, or changes nothing. The owner thread only. It is on the disk when this returns.
    pub fn write<R>(&self, write: impl FnOnce(&WriteTransaction) -> Result<R, DbError>) -> Result<R, DbError> {
        self.has_room()?;
        self.keep_reserve();
        self.transact(write)
    }

    /// As [`Db::write`], for what removes far more than it adds: it is done on a full disk, too, where else nothing
    /// would ever become free. redb puts each page that changes in another place, so some are needed for the moment;
    /// what is free in the file does not do, as it may never have been written, and then it is not on the disk yet. So
    /// there is a reserve. Should that not do either, the error is [`DbError::Disk`], nothing was changed, and the file
    /// must be opened anew.
    pub fn remove<R>(&self, remove: impl FnOnce(&WriteTransaction) -> Result<R, DbError>) -> Result<R, DbError> {
        if self.free()? < RESERVE {
            match fs::remove_file(self.reserve()) {
                Ok(()) => {
                    log::warn!("{}: the disk is full; the reserve is used to remove records", self.path.display())
                }
                Err(error) => log::debug!("{}: {error}", self.reserve().display()),
            }
            self.has_reserve.store(false, Ordering::Relaxed);
        }
        self.transact(remove)
    }

    fn reserve(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(".reserve");
        PathBuf::from(name)
    }

    /// Makes the reserve where there is none, if there is room for it.
    fn keep_reserve(&self) {
        let has_room = || self.free().is_ok_and(|free| free >= FREE_MIN + RESERVE);
        if self.has_reserve.load(Ordering::Relaxed) || !has_room() {
            return;
        }
        let path = self.reserve();
        let made = (|| {
            let mut options = File::options();
            let mut file = options
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path)?;
            // Written, not only made long: else it would take nothing.
            let missing = RESERVE.saturating_sub(file.metadata()?.len());
            if missing > 0 {
                file.write_all(&vec![0; RESERVE as usize])?;
                file.sync_data()?;
            }
            Ok::<_, io::Error>(())
        })();
        if let Err(error) = made {
            log::warn!("{}: {error}; a full disk may have to be freed by others", path.display());
        }
        // Not with each commit, also where there is no making it.
        self.has_reserve.store(true, Ordering::Relaxed);
    }

    fn transact<R>(&self, write: impl FnOnce(&WriteTransaction) -> Result<R, DbError>) -> Result<R, DbError> {
        let result = guarded(|| {
            let database = self.lock_for_reading()?;
            let transaction = begin_write(database.as_ref().ok_or(DbError::Closed)?)?;
            let result = write(&transaction)?;
            transaction.commit()?;
            Ok(result)
        });
        self.note_damage(result)
    }

    /// Whether the disk has room. Looked at before each commit, so that the common way of a full disk needs no mending.
    fn has_room(&self) -> Result<(), DbError> {
        let free = self.free()?;
        if free < FREE_MIN {
            return Err(DbError::NoRoom(format!(
                "no space is left on the disk: {} MiB are free, and below {} MiB nothing is written",
                free >> 20,
                FREE_MIN >> 20
            )));
        }
        Ok(())
    }

    /// Bytes that are free on its disk.
    fn free(&self) -> Result<u64, DbError> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let stat = nix::sys::statvfs::statvfs(directory).map_err(io::Error::from)?;
        Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
    }

    /// Bytes that the file takes, and of them those that hold something.
    pub fn sizes(&self) -> Result<(u64, u64), DbError> {
        let size = fs::metadata(&self.path)?.len();
        let used = guarded(|| {
            let database = self.lock_for_reading()?;
            let write = database.as_ref().ok_or(DbError::Closed)?.begin_write()?;
            let stats = write.stats()?;
            let used = stats.allocated_pages().saturating_mul(stats.page_size() as u64);
            write.abort()?;
            Ok(used)
        })?;
        Ok((size, used))
    }

    /// Gives the file's free pages back to the disk, if they are more than half of it and the others can be moved about in
    /// reasonable time. Readers wait meanwhile. True if it did.
    ///
    /// Where the disk is full it is done for less, if it makes room for records, and takes as long as it takes: nothing
    /// can be written before. After an error the file must be opened anew.
    ///
    /// Telling what is free takes a look at every page, so it comes after much was removed: see [`Db::note_removed`].
    pub fn compact(&self) -> Result<bool, DbError> {
        if !self.may_shrink.load(Ordering::Relaxed) || fs::metadata(&self.path)?.len() < COMPACT_MIN {
            return Ok(false);
        }
        self.may_shrink.store(false, Ordering::Relaxed);
        self.removed.store(0, Ordering::Relaxed);
        let free = self.free()?;
        let (size, used) = self.sizes()?;
        let is_worth_it = if free < FREE_MIN {
            free + size.saturating_sub(used) >= 2 * FREE_MIN
        } else {
            used <= COMPACT_MAX && used <= size / 2
        };
        if !is_worth_it {
            return Ok(false);
        }
        let Ok(mut slot) = self.database.try_write() else { return Ok(false) };
        let Some(database) = slot.as_mut() else { return Ok(false) };
        guarded(|| match database.compact() {
            Ok(done) => {
                // redb's own commits of it do not say what is free.
                begin_write(database)?.commit()?;
                Ok(done)
            }
            // A reader is under way; another time.
            Err(redb::CompactionError::TransactionInProgress) => {
                self.may_shrink.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        })
    }
}

/// Begins a change; its commit says what of the file is free.
fn begin_write(database: &Database) -> Result<WriteTransaction, DbError> {
    let mut write = database.begin_write()?;
    write.set_quick_repair(true);
    Ok(write)
}

/// redb trusts what it has written, and panics where a file says what it cannot have written.
fn guarded<R>(run: impl FnOnce() -> Result<R, DbError>) -> Result<R, DbError> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it makes no sense");
        Err(DbError::Damaged(text.chars().take(200).collect()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("data");

    fn put(db: &Db, keys: std::ops::Range<u64>) {
        db.write(|write| {
            let mut table = write.open_table(DATA)?;
            for key in keys {
                table.insert(key, [7; 2000].as_slice())?;
            }
            Ok(())
        })
        .unwrap();
    }

    /// What `kill -9` would leave now: whether all of it is read when it is opened, and what is in it.
    fn after_a_kill(db: &Db) -> (bool, u64) {
        let copy = db.path().with_file_name("copy.redb");
        fs::copy(db.path(), &copy).unwrap();
        let copy = Db::new(copy, "test", 1);
        let (database, was_read_whole) = copy.open_noting(false).unwrap();
        let read = database.begin_read().unwrap();
        (was_read_whole, redb::ReadableTableMetadata::len(&read.open_table(DATA).unwrap()).unwrap())
    }

    #[test]
    fn opening_after_a_kill_does_not_read_all_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let db = Db::new(directory.path().join("test.redb"), "test", 1);
        assert_eq!(db.mend(false).unwrap(), None);
        for n in 0..5 {
            put(&db, n * 3000..n * 3000 + 3000);
            assert_eq!(after_a_kill(&db), (false, n * 3000 + 3000));
        }
        db.remove(|write| Ok(write.open_table(DATA)?.retain(|key, _| key >= 14_000)?)).unwrap();
        assert_eq!(after_a_kill(&db), (false, 1000));
        let before = db.sizes().unwrap().0;
        db.note_removed(14_000, 1000);
        assert!(db.compact().unwrap() && db.sizes().unwrap().0 < before / 2);
        assert_eq!(after_a_kill(&db), (false, 1000));
        // A file of somebody who did not say what is free: once.
        {
            let slot = db.lock_for_reading().unwrap();
            slot.as_ref().unwrap().begin_write().unwrap().commit().unwrap();
        }
        assert_eq!(after_a_kill(&db), (true, 1000));
        fs::copy(directory.path().join("test.redb"), directory.path().join("old.redb")).unwrap();
        let old = Db::new(directory.path().join("old.redb"), "test", 1);
        old.mend(false).unwrap();
        assert_eq!(after_a_kill(&old), (false, 1000));
    }
}
