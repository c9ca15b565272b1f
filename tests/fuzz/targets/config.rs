//! A config file, and behind a zero byte variables of the environment, one a line: it is taken, or errors are listed that
//! stand inside it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use ebpfsentinel::config;
use ebpfsentinel::written::ERRORS_MAX;

pub fn run(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |&byte| byte == 0);
    let (text, variables) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let variable = |line: &[u8]| {
        let mut sides = line.splitn(2, |&byte| byte == b'=').map(|side| OsString::from_vec(side.to_vec()));
        Some((sides.next()?, sides.next()?))
    };
    let variables: Vec<_> = variables.split(|&byte| byte == b'\n').filter_map(variable).collect();
    let errors = match config::parse("fuzz.toml", text, variables.iter().cloned(), &[]) {
        Ok((config, warnings)) => {
            assert!(config.masked().is_object() && warnings.len() <= ERRORS_MAX + 1);
            assert_eq!(config.restart_needed(&config), Vec::<&str>::new());
            return;
        }
        Err(errors) => errors,
    };
    let lines = 1 + text.iter().filter(|&&byte| byte == b'\n').count();
    assert!(!errors.errors.is_empty() && errors.errors.len() <= ERRORS_MAX + 1 + variables.len());
    for error in &errors.errors {
        // At most some words of what was written are repeated.
        assert!(!error.message.is_empty() && error.message.len() <= 4096, "{} bytes", error.message.len());
        assert!(error.line.is_none_or(|line| (1..=lines as u32).contains(&line)), "{error}");
        assert!(error.column.is_none_or(|column| column > 0), "{error}");
    }
    errors.detailed();
}
