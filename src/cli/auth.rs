//! `auth`: what is needed to let callers in. Nothing here asks the agent.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use argh::FromArgs;
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};
use serde_json::json;
use zeroize::Zeroizing;

use super::{OK, Output, USAGE, complain, pretty, print};
use crate::config::auth::{KEY_CHARS, KeyHash, check_key, new_key};

/// More than any key, so that what is too long is seen to be.
const INPUT_MAX: u64 = 4096;

/// Make API keys and their hashes.
#[derive(FromArgs)]
#[argh(subcommand, name = "auth", help_triggers("-h", "--help", "help"))]
pub struct AuthArgs {
    #[argh(subcommand)]
    command: AuthSub,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum AuthSub {
    Hash(HashArgs),
}

/// Print the key_hash of an API key, which is read from stdin, or asked for on a terminal.
#[derive(FromArgs)]
#[argh(subcommand, name = "hash", help_triggers("-h", "--help", "help"))]
struct HashArgs {
    /// make a key, and print it with its hash
    #[argh(switch)]
    generate: bool,
}

/// A command that needs no agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Local {
    /// Hash a key that is typed.
    Hash,
    /// Make a key, and hash it.
    Generate,
}

/// What the command asks for.
pub fn command(args: AuthArgs) -> Local {
    match args.command {
        AuthSub::Hash(HashArgs { generate: true }) => Local::Generate,
        AuthSub::Hash(HashArgs { generate: false }) => Local::Hash,
    }
}

/// Does it, and returns the exit code.
pub fn run(local: Local, output: Output) -> i32 {
    let key = match local {
        Local::Generate => Ok(Zeroizing::new(new_key())),
        Local::Hash => read_key(),
    };
    let checked = key.and_then(|key| check_key(&key).map(|()| key));
    match checked {
        Ok(key) => {
            print(&shown(local, &key, output));
            OK
        }
        Err(why) => {
            complain(&format!("auth hash: {why}"));
            USAGE
        }
    }
}

fn shown(local: Local, key: &str, output: Output) -> String {
    let hash = KeyHash::of(key).text();
    match (local, output) {
        (Local::Hash, Output::Table) => hash,
        (Local::Hash, Output::Json) => pretty(&json!({ "key_hash": hash })),
        (Local::Generate, Output::Table) => format!("key       {key}\nkey_hash  {hash}"),
        (Local::Generate, Output::Json) => pretty(&json!({ "key": key, "key_hash": hash })),
    }
}

fn read_key() -> Result<Zeroizing<String>, String> {
    if !io::stdin().is_terminal() {
        return read_line(io::stdin().lock());
    }
    let first = ask(&format!("API key ({} to {} characters): ", KEY_CHARS.start(), KEY_CHARS.end()))?;
    if ask("The same again: ")? != first {
        return Err("the two differ".to_owned());
    }
    Ok(first)
}

/// Without its end. A second line is part of the key, and so an error.
fn read_line(from: impl Read) -> Result<Zeroizing<String>, String> {
    let mut text = Zeroizing::new(String::with_capacity(INPUT_MAX as usize + 1));
    from.take(INPUT_MAX).read_to_string(&mut text).map_err(|error| format!("reading the key from stdin: {error}"))?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Asks on the terminal, which does not show what is typed.
fn ask(question: &str) -> Result<Zeroizing<String>, String> {
    let failed = |error: &dyn std::fmt::Display| format!("asking for the key: {error}");
    let stdin = io::stdin();
    let before = tcgetattr(&stdin).map_err(|error| failed(&error))?;
    let mut silent = before.clone();
    silent.local_flags.remove(LocalFlags::ECHO);
    silent.local_flags.insert(LocalFlags::ECHONL);
    eprint!("{question}");
    io::stderr().flush().map_err(|error| failed(&error))?;
    tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent).map_err(|error| failed(&error))?;
    let mut line = Zeroizing::new(String::with_capacity(INPUT_MAX as usize + 1));
    let read = stdin.lock().take(INPUT_MAX).read_line(&mut line);
    let restored = tcsetattr(&stdin, SetArg::TCSAFLUSH, &before);
    read.map_err(|error| failed(&error))?;
    restored.map_err(|error| failed(&error))?;
    if line.ends_with('\n') {
        line.pop();
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_line() {
        let read = |text: &str| read_line(text.as_bytes()).unwrap().to_string();
        assert_eq!(read("abc"), "abc");
        assert_eq!(read("abc\n"), "abc");
        assert_eq!(read("abc\n\n"), "abc\n");
        assert_eq!(read(&"x".repeat(10_000)).len(), INPUT_MAX as usize);
        assert!(read_line(&b"\xff"[..]).is_err());
    }

    #[test]
    fn what_is_printed_is_the_hash_of_the_key() {
        let key = new_key();
        assert_eq!(check_key(&key), Ok(()));
        for output in [Output::Table, Output::Json] {
            let text = shown(Local::Generate, &key, output);
            let hash = text.split_whitespace().find_map(|word| word.trim_matches(['"', ',']).strip_prefix("sha256:"));
            let hash: KeyHash = format!("sha256:{}", hash.unwrap()).parse().unwrap();
            assert!(bool::from(hash.matches(&key)) && !bool::from(hash.matches("another")), "{text}");
            assert!(text.contains(&key) && !shown(Local::Hash, &key, output).contains(&key));
        }
        assert_ne!(new_key(), new_key());
    }
}
