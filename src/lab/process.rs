//! A program inside a namespace that never outlives its owner.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running program; killed and reaped when dropped. What it says goes to a file without a name, so that it never
/// waits for its reader.
#[derive(Debug)]
pub struct Process {
    child: Child,
    said: File,
    program: String,
}

/// A command whose child enters `namespace` before it starts.
pub(super) fn command_in(namespace: &File, program: impl AsRef<OsStr>) -> Result<Command> {
    let namespace = namespace.try_clone()?;
    let mut command = Command::new(program);
    let enter = move || setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
    // SAFETY: setns is one system call on a descriptor that the closure owns: nothing allocates or locks between fork
    // and exec.
    unsafe { command.pre_exec(enter) };
    Ok(command)
}

impl Process {
    /// Starts `command` without input; stdout and stderr are kept in order.
    pub fn start(command: &mut Command) -> Result<Process> {
        let program = command.get_program().to_string_lossy().into_owned();
        let said = memory_file()?;
        let child = command
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said.try_clone()?)
            .spawn()
            .with_context(|| format!("starting {program}"))?;
        Ok(Process { child, said, program })
    }

    /// Its pid.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has written so far.
    pub fn output(&self) -> String {
        let mut bytes = Vec::new();
        // A second description of the file: the child's own place of writing must not move.
        let read = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.said))).and_then(
            |mut file| {
                file.seek(SeekFrom::Start(0))?;
                file.read_to_end(&mut bytes)
            },
        );
        match read {
            Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) => format!("(output of {} is unreadable: {error})", self.program),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id() as i32);
        kill(pid, signal).with_context(|| format!("sending {signal} to {}", self.program))
    }

    /// The exit status if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("waiting for {}", self.program))
    }

    /// Waits at most `limit`; `None` when it still runs then.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to end by SIGTERM and waits; kills it after `limit`. `None` means that it had to be killed.
    pub fn stop(&mut self, limit: Duration) -> Result<Option<ExitStatus>> {
        if self.ended()?.is_none() {
            self.signal(Signal::SIGTERM)?;
        }
        let status = self.wait(limit)?;
        if status.is_none() {
            self.child.kill()?;
            self.child.wait()?;
        }
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only when it has been reaped already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn memory_file() -> Result<File> {
    let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
    let file = File::from(nix::sys::memfd::memfd_create(c"ebs-output", flags).context("making a file for output")?);
    // Appending keeps stdout and stderr from overwriting each other, whoever opens the file again.
    nix::fcntl::fcntl(file.as_fd(), nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_APPEND))?;
    Ok(file)
}
