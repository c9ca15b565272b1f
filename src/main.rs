//! The agent and its command line, in one binary.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use ebpfsentinel::agent::{self, Options};
use ebpfsentinel::cli::{self, Command};
use ebpfsentinel::control::tls::TlsState;
use ebpfsentinel::lab::demo;
use ebpfsentinel::outbound;
use ebpfsentinel::replay::{self, Job};

const DEFAULT_CONFIG: &str = "/etc/ebpfsentinel/config.toml";

fn main() -> ExitCode {
    outbound::install_crypto();
    let invocation = cli::parse();
    let global = &invocation.global;
    let options = |path: Option<PathBuf>| Options {
        config: path.or_else(|| global.config.clone()).unwrap_or_else(|| PathBuf::from(DEFAULT_CONFIG)),
        flags: flags(global),
    };
    match invocation.command {
        Command::Run => match agent::run(options(None)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                cli::complain(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        },
        Command::Version => {
            println!("{}", cli::version(global.output));
            ExitCode::SUCCESS
        }
        Command::Check(path) => check(&options(path)),
        Command::Demo => match demo::run() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                cli::complain(&format!("{error:#}"));
                ExitCode::FAILURE
            }
        },
        Command::Auth(local) => ExitCode::from(u8::try_from(cli::run_auth(global, local)).unwrap_or(1)),
        Command::Replay(asked) => replay(global, &asked, options(None)),
        Command::Remote(remote) => ExitCode::from(u8::try_from(cli::run_remote(global, &remote)).unwrap_or(1)),
    }
}

/// Replays a capture file. Its lines go to stdout and the summary to stderr; where only the summary is asked for, it is
/// the output.
fn replay(global: &cli::Global, asked: &cli::Replay, options: Options) -> ExitCode {
    let config = match &global.config {
        None => None,
        Some(_) => match options.load() {
            Ok(loaded) => Some(loaded.config),
            Err(errors) => {
                eprint!("{}", cli::printable(&errors.detailed()));
                return ExitCode::from(2);
            }
        },
    };
    let lines = global.output == cli::Output::Json;
    let job = Job {
        file: asked.file.clone(),
        kernel: asked.kernel,
        events: asked.events,
        lines,
        local: asked.local.clone(),
        interface: asked.interface.clone(),
    };
    match replay::run(&job, config.as_ref(), &mut std::io::stdout().lock()) {
        Ok(summary) => {
            if let Some(fault) = &summary.fault {
                eprintln!("warning: {}: {fault}", job.file.display());
            }
            if lines {
                eprintln!("{summary}");
            } else {
                // A reader that has gone away is no error.
                let _ = writeln!(std::io::stdout().lock(), "{summary}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            cli::complain(&error.to_string());
            ExitCode::from(if error.is_input() { 2 } else { 1 })
        }
    }
}

/// Flags of the command line that set keys of the configuration.
fn flags(global: &cli::Global) -> Vec<(String, String, String)> {
    let flag = |name: &str, key: &str, value: &Option<String>| {
        value.as_ref().map(|value| (name.to_owned(), key.to_owned(), value.clone()))
    };
    [
        flag("--log-level", "agent.log_level", &global.log_level),
        flag("--log-format", "agent.log_format", &global.log_format),
        flag("--host", "agent.bind_address", &global.host),
        flag("--port", "agent.http_port", &global.port.map(|port| port.to_string())),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Validates a configuration as the agent would at its start, and starts nothing.
fn check(options: &Options) -> ExitCode {
    match options.load() {
        Ok(loaded) => {
            for warning in &loaded.warnings {
                eprintln!("warning: {warning}");
            }
            let config = &loaded.config;
            if config.tls.enabled {
                match TlsState::load(&config.tls) {
                    Ok(tls) => tls.warnings().iter().for_each(|warning| eprintln!("warning: tls: {warning}")),
                    Err(error) => {
                        cli::complain(&format!("tls: {error:#}"));
                        return ExitCode::from(2);
                    }
                }
            }
            let (firewall, limits) = (config.firewall.rules.len(), config.ratelimit.rules.len());
            let l7 = config.l7.rules.len();
            println!("{}: ok; {firewall} firewall, {limits} ratelimit and {l7} l7 rules", loaded.path.display());
            ExitCode::SUCCESS
        }
        Err(errors) => {
            eprint!("{}", cli::printable(&errors.detailed()));
            ExitCode::from(2)
        }
    }
}
