//! Sets of regular expressions that are searched for in one pass, by Hyperscan (or Vectorscan, the same library by
//! another name).
//!
//! The library's own layer is used, behind types that cannot be used wrongly: a database is freed once nobody scans with
//! it, scratch belongs to one thread and is made to fit each database before its first scan, and the callback, which
//! must not panic, writes numbers into memory that is there before the scan begins.
//!
//! Patterns are bytes, not characters: `.` is any byte, NUL and newline included, and no value is too strange to be
//! searched. They match anywhere unless anchored by `^` or `\A`, and `$` or `\z`.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyperscan_sys as hs;

use super::complexity;

/// Databases that scratch remembers it fits; when there are more, it looks at each anew.
const FITTED_MAX: usize = 1024;

/// One of a set.
#[derive(Clone, Copy, Debug)]
pub struct Pattern<'p> {
    /// The regular expression.
    pub expression: &'p str,
    /// Whether upper and lower case of ASCII are the same.
    pub is_caseless: bool,
    /// What is reported when it matches.
    pub id: u32,
}

/// Why a set was not compiled.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", .id.map(|id| format!("pattern {id}: ")).unwrap_or_default())]
pub struct PatternError {
    /// The pattern that is at fault, if one is.
    pub id: Option<u32>,
    /// What is wrong.
    pub message: String,
}

/// Whether an expression can be part of a set: within the limits of [`complexity`], and compiled alone.
///
/// # Errors
/// What is wrong with it, for whoever wrote it.
pub fn check(expression: &str, is_caseless: bool) -> Result<(), String> {
    complexity::check(expression)?;
    Database::compile(&[Pattern { expression, is_caseless, id: 0 }]).map(drop).map_err(|failure| failure.message)
}

/// A set of patterns, compiled. Cheap to clone; any number of threads may scan with it at once.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    /// One, unless the compiler could not take all patterns together.
    databases: Vec<Arc<Database>>,
}

impl Patterns {
    /// Compiles a set. Of an empty one nothing is ever found.
    ///
    /// # Errors
    /// One of the patterns is beyond the limits or cannot be compiled; the error names it.
    pub fn compile(patterns: &[Pattern<'_>]) -> Result<Patterns, PatternError> {
        for pattern in patterns {
            let named = |message| PatternError { id: Some(pattern.id), message };
            complexity::check(pattern.expression).map_err(named)?;
        }
        let mut databases = Vec::new();
        // What is too big together is halved, so that each pattern that can be compiled alone is compiled.
        let mut waiting = vec![patterns];
        while let Some(some) = waiting.pop() {
            match (some, Database::compile(some)) {
                ([], _) => {}
                (_, Ok(database)) => databases.push(Arc::new(database)),
                ([one], Err(failure)) => return Err(PatternError { id: Some(one.id), message: failure.message }),
                (several, Err(Failure { at: Some(at), message })) if at < several.len() => {
                    return Err(PatternError { id: Some(several[at].id), message });
                }
                (several, Err(_)) => {
                    let (front, back) = several.split_at(several.len() / 2);
                    waiting.extend([back, front]);
                }
            }
        }
        Ok(Patterns { databases })
    }

    /// Whether there is no pattern in it.
    pub fn is_empty(&self) -> bool {
        self.databases.is_empty()
    }

    /// Bytes that it takes.
    pub fn memory(&self) -> usize {
        self.databases.iter().map(|database| database.memory()).sum()
    }

    /// Appends the id of each pattern that matches to `found`, once, in no order.
    ///
    /// # Errors
    /// The library ran out of memory, or says that something is wrong; `found` may lack some.
    pub fn scan(&self, scratch: &mut Scratch, bytes: &[u8], found: &mut Vec<u32>) -> Result<(), ScanError> {
        self.databases.iter().try_for_each(|database| database.scan(scratch, bytes, found))
    }
}

/// The library refused to scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the pattern matcher failed with code {0}")]
pub struct ScanError(i32);

/// What a database could not be made of.
struct Failure {
    /// The pattern that is at fault, by its place.
    at: Option<usize>,
    message: String,
}

/// One of the library's databases.
struct Database {
    raw: NonNull<hs::hs_database_t>,
    /// Of all that this process made, so that scratch knows which it fits.
    number: u64,
    /// Patterns in it: how many ids one scan may report.
    patterns: usize,
}

// SAFETY: the library never writes to a compiled database (its documentation: "immutable", for any number of threads), and
// `Drop` runs once.
unsafe impl Send for Database {}
// SAFETY: see above.
unsafe impl Sync for Database {}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Database({} patterns)", self.patterns)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // SAFETY: it came from the compiler, and nobody has it any more. The only error is a pointer that is none.
        unsafe { hs::hs_free_database(self.raw.as_ptr()) };
    }
}

impl Database {
    fn compile(patterns: &[Pattern<'_>]) -> Result<Database, Failure> {
        static NUMBERS: AtomicU64 = AtomicU64::new(1);
        let whole = |message: &str| Failure { at: None, message: message.to_owned() };
        let elements = c_uint::try_from(patterns.len()).map_err(|_| whole("too many patterns"))?;
        let expressions = patterns
            .iter()
            .enumerate()
            .map(|(at, pattern)| {
                let failure = |_| Failure { at: Some(at), message: "a pattern has no NUL byte in it".to_owned() };
                CString::new(pattern.expression).map_err(failure)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<*const c_char> = expressions.iter().map(|text| text.as_ptr()).collect();
        let flags: Vec<c_uint> = patterns.iter().map(flags_of).collect();
        let ids: Vec<c_uint> = patterns.iter().map(|pattern| pattern.id).collect();
        let mut raw: *mut hs::hs_database_t = ptr::null_mut();
        let mut error: *mut hs::hs_compile_error_t = ptr::null_mut();
        // SAFETY: the three arrays have `elements` entries, the strings end with NUL, all live until the call returns, and
        // both results may be written. No platform means this one.
        let code = unsafe {
            hs::hs_compile_multi(
                pointers.as_ptr(),
                flags.as_ptr(),
                ids.as_ptr(),
                elements,
                hs::HS_MODE_BLOCK,
                ptr::null(),
                &mut raw,
                &mut error,
            )
        };
        match NonNull::new(raw) {
            Some(raw) if code == 0 => {
                let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
                Ok(Database { raw, number, patterns: patterns.len() })
            }
            _ => Err(take_error(error)),
        }
    }

    fn memory(&self) -> usize {
        let mut bytes = 0;
        // SAFETY: the database is alive, and the size may be written.
        let code = unsafe { hs::hs_database_size(self.raw.as_ptr(), &mut bytes) };
        if code == 0 { bytes } else { 0 }
    }

    fn scan(&self, scratch: &mut Scratch, bytes: &[u8], found: &mut Vec<u32>) -> Result<(), ScanError> {
        let scratch = scratch.fit(self)?;
        // What is reported once for each pattern finds its room here, and the callback never asks for any.
        found.reserve(self.patterns);
        // No value is so long: what parsers keep is capped far below.
        let length = c_uint::try_from(bytes.len()).unwrap_or(c_uint::MAX);
        // SAFETY: the database and the bytes live until the call returns, `length` is at most theirs, and the scratch was
        // made to fit this database and belongs to this thread alone (`&mut`). `found` is touched by nobody but the
        // callback meanwhile.
        let code = unsafe {
            hs::hs_scan(
                self.raw.as_ptr(),
                bytes.as_ptr().cast(),
                length,
                0,
                scratch.as_ptr(),
                Some(note),
                ptr::from_mut(found).cast(),
            )
        };
        // The library's errors are negative.
        if code == 0 { Ok(()) } else { Err(ScanError(code)) }
    }
}

/// `.` is every byte, so that no newline hides what follows it; each pattern is told once.
fn flags_of(pattern: &Pattern<'_>) -> c_uint {
    let caseless = if pattern.is_caseless { hs::HS_FLAG_CASELESS } else { 0 };
    caseless | hs::HS_FLAG_DOTALL | hs::HS_FLAG_SINGLEMATCH
}

/// What the compiler complains about, in words.
fn take_error(error: *mut hs::hs_compile_error_t) -> Failure {
    if error.is_null() {
        return Failure { at: None, message: "the pattern compiler is out of memory".to_owned() };
    }
    // SAFETY: the compiler made the error, its text ends with NUL, and it is freed once, after its last use.
    let (text, at) = unsafe {
        let message = (*error).message;
        let text = (!message.is_null()).then(|| CStr::from_ptr(message).to_string_lossy().into_owned());
        let at = usize::try_from((*error).expression).ok();
        hs::hs_free_compile_error(error);
        (text.unwrap_or_default(), at)
    };
    let message = match text.trim_end_matches('.') {
        "Pattern matches empty buffer; use HS_FLAG_ALLOWEMPTY to enable support" => {
            "it matches the empty text, and so everything; anchor it or ask for a character".to_owned()
        }
        "" => "it cannot be compiled".to_owned(),
        text => {
            let mut letters = text.chars();
            let first = letters.next().map(|c| c.to_ascii_lowercase()).into_iter();
            first.chain(letters).collect()
        }
    };
    // An error about the set as a whole has no place, or that of a pattern which is not at fault.
    let at = at.filter(|_| !message.contains("too large") && !message.contains("allocate memory"));
    Failure { at, message }
}

/// Notes the id of a pattern that matched. It must not panic: there would be nobody to catch it.
unsafe extern "C" fn note(
    id: c_uint,
    _from: c_ulonglong,
    _to: c_ulonglong,
    _flags: c_uint,
    context: *mut c_void,
) -> c_int {
    // SAFETY: `scan` hands over its exclusive reference, and waits.
    let found = unsafe { &mut *context.cast::<Vec<u32>>() };
    if found.len() == found.capacity() {
        return 1;
    }
    found.push(id);
    0
}

/// Memory that a thread scans with. Made to fit whatever is scanned with it.
#[derive(Default)]
pub struct Scratch {
    raw: Option<NonNull<hs::hs_scratch_t>>,
    /// Numbers of the databases that it fits, ascending.
    fitted: Vec<u64>,
}

// SAFETY: scratch may go to another thread; only its use by two at once is forbidden, and each use takes `&mut`.
unsafe impl Send for Scratch {}

impl fmt::Debug for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scratch")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(raw) = self.raw {
            // SAFETY: it came from `hs_alloc_scratch`, and no scan runs, for that would borrow it.
            unsafe { hs::hs_free_scratch(raw.as_ptr()) };
        }
    }
}

impl Scratch {
    /// The scratch, large enough for a database. It only grows, so that it goes on to fit those before.
    fn fit(&mut self, database: &Database) -> Result<NonNull<hs::hs_scratch_t>, ScanError> {
        let place = self.fitted.binary_search(&database.number);
        if let (Ok(_), Some(raw)) = (place, self.raw) {
            return Ok(raw);
        }
        let mut raw = self.raw.map_or(ptr::null_mut(), NonNull::as_ptr);
        // SAFETY: the database is alive; the pointer is null or this scratch, which is not in use, and is written back
        // whatever happens.
        let code = unsafe { hs::hs_alloc_scratch(database.raw.as_ptr(), &mut raw) };
        // A failure to grow frees the old one or leaves it as it is, which nobody can tell apart: it is given up.
        self.raw = if code == 0 { NonNull::new(raw) } else { None };
        let Some(raw) = self.raw else {
            self.fitted.clear();
            return Err(ScanError(code));
        };
        if self.fitted.len() == FITTED_MAX {
            self.fitted.clear();
        }
        let place = self.fitted.partition_point(|number| *number < database.number);
        self.fitted.insert(place, database.number);
        Ok(raw)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn set(expressions: &[&str]) -> Patterns {
        let patterns: Vec<_> = (0..)
            .zip(expressions)
            .map(|(id, expression)| Pattern { expression, is_caseless: false, id })
            .collect();
        Patterns::compile(&patterns).unwrap()
    }

    fn found(patterns: &Patterns, scratch: &mut Scratch, bytes: &[u8]) -> Vec<u32> {
        let mut found = Vec::new();
        patterns.scan(scratch, bytes, &mut found).unwrap();
        found.sort_unstable();
        found
    }

    #[test]
    fn a_set_tells_each_pattern_that_matches_once() {
        let patterns = set(&["abc", "^a", "c$", "b.*x", r"x\z", "a|b|c"]);
        let mut scratch = Scratch::default();
        assert_eq!(found(&patterns, &mut scratch, b"abcabcabc"), [0, 1, 2, 5]);
        assert_eq!(found(&patterns, &mut scratch, b"zb\n\0\xffx"), [3, 4, 5]);
        assert_eq!(found(&patterns, &mut scratch, b""), [0u32; 0]);
        assert_eq!(found(&set(&[]), &mut scratch, b"abc"), [0u32; 0]);
        assert!(set(&[]).is_empty() && !patterns.is_empty() && patterns.memory() > 100);
    }

    #[test]
    fn case_is_each_patterns_own() {
        let pattern = |id, is_caseless| Pattern { expression: "AbC", is_caseless, id };
        let patterns = Patterns::compile(&[pattern(7, true), pattern(9, false)]).unwrap();
        let mut scratch = Scratch::default();
        assert_eq!(found(&patterns, &mut scratch, b"xabcx"), [7]);
        assert_eq!(found(&patterns, &mut scratch, b"xAbCx"), [7, 9]);
    }

    #[test]
    fn bad_patterns_are_named_and_say_why() {
        for (expression, part) in [
            ("(", "parenthes"),
            ("[a", "class"),
            ("a{2,1}", "repeat"),
            ("a*", "empty text"),
            ("(?=a)b", "look-around"),
            ("abc^def", "anchor"),
            ("(a{1000}){1000}", "positions"),
            ("*a", "invalid repeat"),
        ] {
            let alone = check(expression, false).unwrap_err();
            assert!(alone.to_lowercase().contains(part), "{expression}: {alone}");
            let good = |id| Pattern { expression: "good", is_caseless: false, id };
            let bad = Pattern { expression, is_caseless: false, id: 77 };
            let error = Patterns::compile(&[good(1), bad, good(3)]).unwrap_err();
            assert_eq!((error.id, error.message), (Some(77), alone), "{expression}");
        }
    }

    /// What is within the limits is compiled soon, and what is not is refused at once.
    #[test]
    fn compiling_is_bounded() {
        for expression in [
            "(a{1000}){1000}",
            "(((((a{99}){99}){99}){99}){99})",
            "a{2000}",
            ".{1,1999}x",
            "([a-f]{1,60}x){30}",
            "(a|b|c|d){500}",
            "x(.{1,900}y){2}z",
            "((a.{1,20}){1,20}b){1,4}",
            "(.*a.{300}){6}b",
        ] {
            let begun = Instant::now();
            let _ = check(expression, true);
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(5), "{expression} took {took:?}");
        }
    }

    #[test]
    fn scratch_fits_databases_of_any_order_and_outlives_them() {
        let mut scratch = Scratch::default();
        for round in 0..3 {
            let small = set(&["a"]);
            let many: Vec<String> = (0..500).map(|n| format!("w{n}x.*(y|z)[0-9]{{1,9}}")).collect();
            let large = set(&many.iter().map(String::as_str).collect::<Vec<_>>());
            assert_eq!(found(&small, &mut scratch, b"a"), [0], "{round}");
            assert_eq!(found(&large, &mut scratch, b"w17x y1"), [17], "{round}");
            assert_eq!(found(&small, &mut scratch, b"a"), [0], "{round}");
        }
        for _ in 0..FITTED_MAX + 10 {
            scratch.fitted.push(u64::MAX - 1);
        }
        scratch.fitted.truncate(FITTED_MAX);
        assert_eq!(found(&set(&["b"]), &mut scratch, b"b"), [0]);
        assert_eq!(scratch.fitted.len(), 1);
    }

    #[test]
    fn many_threads_scan_with_one_set() {
        let patterns = set(&["needle", "hay"]);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let patterns = patterns.clone();
                scope.spawn(move || {
                    let mut scratch = Scratch::default();
                    for _ in 0..1000 {
                        assert_eq!(found(&patterns, &mut scratch, b"hayneedlehay"), [0, 1]);
                    }
                });
            }
        });
    }
}
