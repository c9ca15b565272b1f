//! A config file: it is taken, or errors are listed that stand inside it.

use ebpfsentinel::config;
use ebpfsentinel::written::ERRORS_MAX;

pub fn run(text: &[u8]) {
    let Err(errors) = config::parse("fuzz.toml", text, [], &[]) else { return };
    let lines = 1 + text.iter().filter(|&&byte| byte == b'\n').count();
    assert!(!errors.errors.is_empty() && errors.errors.len() <= ERRORS_MAX + 1);
    for error in &errors.errors {
        assert!(!error.message.is_empty());
        assert!(error.line.is_none_or(|line| (1..=lines as u32).contains(&line)), "{error}");
        assert!(error.column.is_none_or(|column| column > 0), "{error}");
    }
    errors.detailed();
}
