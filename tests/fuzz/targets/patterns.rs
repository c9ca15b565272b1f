//! What people write to match by: texts with jokers, and regular expressions. They are taken or refused in time, what is
//! taken compiles, jokers mean what they say, and the filter of a text finds all that the text matches.

use std::time::Duration;

use ebpfsentinel::matching::matcher::{Folding, Form, Matcher};
use ebpfsentinel::matching::patterns::{Pattern, Patterns, Scratch};
use nix::time::{ClockId, clock_gettime};

/// CPU time that one expression may take to compile: rules come by hundreds.
const COMPILE_MAX: Duration = Duration::from_secs(4);
/// Bytes that one compiled expression may take.
const MEMORY_MAX: usize = 32 << 20;

fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn found(expression: &str, is_caseless: bool, value: &[u8]) -> bool {
    let set = Patterns::compile(&[Pattern { expression, is_caseless, id: 7 }]).expect("it was checked");
    assert!(set.memory() <= MEMORY_MAX, "{} bytes for {expression:?}", set.memory());
    let (mut scratch, mut found) = (Scratch::default(), Vec::new());
    set.scan(&mut scratch, value, &mut found).expect("scanning");
    assert!(found.is_empty() || found == [7], "{found:?}");
    !found.is_empty()
}

/// Place by place: `reach` says which ends of the value the text so far can stand for.
fn joker(text: &[u8], value: &[u8]) -> bool {
    let mut reach = vec![false; value.len() + 1];
    reach[0] = true;
    for byte in text {
        if *byte == b'*' {
            let first = reach.iter().position(|is_reached| *is_reached).unwrap_or(reach.len());
            reach[first..].fill(true);
        } else {
            for at in (1..reach.len()).rev() {
                reach[at] = reach[at - 1] && (*byte == b'?' || *byte == value[at - 1]);
            }
            reach[0] = false;
        }
    }
    reach[value.len()]
}

/// The first byte says how case counts, the second how long the text is; what follows it is the value.
pub fn run(bytes: &[u8]) {
    let [choice, length, rest @ ..] = bytes else { return };
    let folding = [Folding::None, Folding::Case, Folding::Name][usize::from(choice & 0x7f) % 3];
    let (text, value) = rest.split_at(rest.len().min((*length).into()));
    let Ok(text) = std::str::from_utf8(text) else { return };
    let written = if choice & 0x80 == 0 { text.to_owned() } else { format!("~{text}") };
    let value = if folding == Folding::None { value.to_vec() } else { value.to_ascii_lowercase() };
    let began = cpu();
    let read = Matcher::read(&written, folding);
    let took = cpu() - began;
    assert!(took <= COMPILE_MAX, "{took:?} for {written:?}");
    let Ok(matcher) = read else { return };
    let form = matcher.form();
    let jokers = match form {
        Form::Exact(text) => **text == *value,
        Form::Prefix(text) => joker(&[text, &b"*"[..]].concat(), &value),
        Form::Suffix(text) => joker(&[b"*", &text[..]].concat(), &value),
        Form::Wildcard(text) => joker(text, &value),
        Form::Regex(expression, is_caseless) => {
            found(expression, *is_caseless, &value);
            false
        }
    };
    assert_eq!(form.matches(&value), jokers, "{written:?} of {value:?}");
    if let (true, Some(filter)) = (jokers, form.filter()) {
        assert!(found(&filter, form.is_caseless(), &value), "{filter:?} does not find what {written:?} matches");
    }
}
