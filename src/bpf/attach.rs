//! Attachment: XDP as a link in native mode where the driver has it, TC by tcx (6.6+), else clsact.
//!
//! A link that nobody holds is gone with the process, so a killed agent leaves nothing behind; a pinned link stays and is
//! taken over by `bpf_link_update`, with no packet in between that nobody judges.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use serde::Serialize;

use super::check;

/// Which XDP modes the user allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XdpMode {
    /// Native where the driver has it, else generic.
    #[default]
    Auto,
    /// Only native.
    Native,
    /// Only generic.
    Generic,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// XDP in the driver.
    Native,
    /// XDP in the kernel's stack, after the driver.
    Generic,
    /// TC by a tcx link.
    Tcx,
    /// TC by a filter of the clsact qdisc.
    Clsact,
}

impl AttachMode {
    /// The word in status and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            AttachMode::Native => "native",
            AttachMode::Generic => "generic",
            AttachMode::Tcx => "tcx",
            AttachMode::Clsact => "clsact",
        }
    }
}

enum Hold {
    Link(OwnedFd),
    /// A clsact filter: the kernel keeps it without a holder, so it is taken away on drop.
    Filter(libbpf_rs::TcHook),
}

/// A program on an interface; dropping it detaches, unless it is pinned.
pub struct Attached {
    hold: Hold,
    /// How it is attached.
    pub mode: AttachMode,
    /// On which interface.
    pub ifindex: u32,
    pin: Option<PathBuf>,
}

// SAFETY: a TcHook is a description of a filter (ifindex, handle, priority) without thread-bound state.
unsafe impl Send for Attached {}

const DRIVER_MODE: u32 = 1 << 2; // XDP_FLAGS_DRV_MODE
const GENERIC_MODE: u32 = 1 << 1; // XDP_FLAGS_SKB_MODE

fn create_xdp_link(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> std::io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        flags,
        ..Default::default()
    };
    // SAFETY: options is a whole bpf_link_create_opts of the size that it says.
    let fd = unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex as i32, libbpf_sys::BPF_XDP, &options) };
    // SAFETY: a fresh descriptor that nobody else owns.
    check(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The XDP program that is on an interface, as `id 7 (name)`.
fn other_xdp_program(ifindex: u32) -> Option<String> {
    let mut options =
        libbpf_sys::bpf_xdp_query_opts { sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as _, ..Default::default() };
    // SAFETY: options is a whole bpf_xdp_query_opts of the size that it says.
    check(unsafe { libbpf_sys::bpf_xdp_query(ifindex as i32, 0, &mut options) }).ok()?;
    let id = [options.prog_id, options.drv_prog_id, options.skb_prog_id, options.hw_prog_id]
        .into_iter()
        .find(|&id| id != 0)?;
    let name = libbpf_rs::ProgramHandle::from_prog_id(id).map(|program| program.name().to_string_lossy().into_owned());
    Some(match name {
        Ok(name) => format!("id {id} ({name})"),
        // It takes CAP_SYS_ADMIN, which the sandbox gives up.
        Err(_) => format!("id {id} (`bpftool prog show id {id}` tells whose it is)"),
    })
}

/// Attaches an XDP program.
///
/// # Errors
/// Names the program that is already there; says why native mode was refused when only that was allowed.
pub fn xdp(program: BorrowedFd<'_>, ifindex: u32, name: &str, mode: XdpMode) -> Result<Attached> {
    let busy = |error: &std::io::Error| matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST));
    let mut refusal = None;
    for (allowed, flags, attach_mode) in
        [(XdpMode::Native, DRIVER_MODE, AttachMode::Native), (XdpMode::Generic, GENERIC_MODE, AttachMode::Generic)]
    {
        if mode != XdpMode::Auto && mode != allowed {
            continue;
        }
        match create_xdp_link(program, ifindex, flags) {
            Ok(link) => {
                if let Some(error) = refusal {
                    log::warn!("{name}: no native XDP ({error}); attached in generic mode, which is slower");
                }
                return Ok(Attached { hold: Hold::Link(link), mode: attach_mode, ifindex, pin: None });
            }
            Err(error) if busy(&error) => {
                let other = other_xdp_program(ifindex).unwrap_or_else(|| "of unknown name".to_owned());
                bail!(
                    "another XDP program is on {name}: {other}; \
                     take it away first (ip link set dev {name} xdp off, or stop its owner)"
                );
            }
            Err(error) => refusal = Some(error),
        }
    }
    let error = refusal.unwrap_or_else(|| std::io::Error::from_raw_os_error(libc::EINVAL));
    Err(error).with_context(|| format!("attaching an XDP program to {name}"))
}

/// Attaches a program that passes everything, in native mode. A veth takes the frames that its peer's XDP sends or
/// redirects to it only where XDP runs too.
pub fn xdp_pass(ifindex: u32, name: &str) -> Result<Attached> {
    // mov32 r0, XDP_PASS; exit
    let code = [
        libbpf_sys::bpf_insn { code: 0xb4, imm: 2, ..Default::default() },
        libbpf_sys::bpf_insn { code: 0x95, ..Default::default() },
    ];
    // SAFETY: names end with a zero, the code has as many instructions as are told, and there are no options.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_XDP,
            c"xdp_pass".as_ptr(),
            c"GPL".as_ptr(),
            code.as_ptr(),
            code.len() as _,
            std::ptr::null_mut(),
        )
    };
    let fd = check(fd).context("loading a program that passes everything")?;
    // SAFETY: a fresh descriptor that nobody else owns.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    xdp(program.as_fd(), ifindex, name, XdpMode::Native)
}

/// Which packets a TC program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcPlace {
    /// What leaves the interface, behind the programs that are there already.
    Egress,
    /// What arrives on it, before them: with tcx, none of them takes a packet away unseen.
    Ingress,
    /// As [`TcPlace::Egress`], beside a program that is there already.
    EgressToo,
    /// As [`TcPlace::Ingress`], behind the program of this name if that is there.
    IngressBehind(&'static str),
}

impl TcPlace {
    const fn is_ingress(self) -> bool {
        matches!(self, TcPlace::Ingress | TcPlace::IngressBehind(_))
    }

    /// Priority of the filter of clsact; a handle is the same number. Those of one place replace each other.
    const fn priority(self) -> u16 {
        match self {
            TcPlace::Egress | TcPlace::Ingress => 0xeb5,
            TcPlace::EgressToo | TcPlace::IngressBehind(_) => 0xeb6,
        }
    }
}

/// Id of the program of this name among those that tcx runs for what arrives on an interface.
fn tcx_ingress_program(ifindex: u32, name: &str) -> Option<u32> {
    let mut ids = [0u32; 64];
    let mut options = libbpf_sys::bpf_prog_query_opts {
        sz: size_of::<libbpf_sys::bpf_prog_query_opts>() as _,
        prog_ids: ids.as_mut_ptr(),
        ..Default::default()
    };
    options.__bindgen_anon_1.count = ids.len() as u32;
    // SAFETY: options is a whole bpf_prog_query_opts of the size that it says, with room for as many ids as it says.
    check(unsafe { libbpf_sys::bpf_prog_query_opts(ifindex as i32, libbpf_sys::BPF_TCX_INGRESS, &mut options) })
        .ok()?;
    let is_it = |&id: &u32| {
        id != 0 && libbpf_rs::ProgramHandle::from_prog_id(id).is_ok_and(|one| one.name().to_string_lossy() == name)
    };
    ids.into_iter().find(is_it)
}

/// Attaches a TC program, which is called `program_name`, to an interface.
pub fn tc(
    program: BorrowedFd<'_>,
    program_name: &str,
    place: TcPlace,
    ifindex: u32,
    interface: &str,
) -> Result<Attached> {
    let mut options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        ..Default::default()
    };
    let (kind, hook) = if place.is_ingress() {
        options.flags = libbpf_sys::BPF_F_BEFORE;
        if let TcPlace::IngressBehind(other) = place
            && let Some(id) = tcx_ingress_program(ifindex, other)
        {
            options.flags = libbpf_sys::BPF_F_AFTER | libbpf_sys::BPF_F_ID;
            options.__bindgen_anon_1.tcx.relative_id = id;
        }
        (libbpf_sys::BPF_TCX_INGRESS, libbpf_rs::TC_INGRESS)
    } else {
        (libbpf_sys::BPF_TCX_EGRESS, libbpf_rs::TC_EGRESS)
    };
    // SAFETY: options is a whole bpf_link_create_opts of the size that it says.
    let fd = unsafe { libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex as i32, kind, &options) };
    match check(fd) {
        Ok(fd) => {
            // SAFETY: a fresh descriptor that nobody else owns.
            let link = unsafe { OwnedFd::from_raw_fd(fd) };
            return Ok(Attached { hold: Hold::Link(link), mode: AttachMode::Tcx, ifindex, pin: None });
        }
        // EINVAL: a kernel before 6.6 does not know the attach type.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(error) => return Err(error).with_context(|| format!("attaching {program_name} to {interface}")),
    }
    let mut hook = libbpf_rs::TcHookBuilder::new(program)
        .ifindex(ifindex as i32)
        .replace(true)
        .handle(u32::from(place.priority()))
        .priority(u32::from(place.priority()))
        .hook(hook);
    hook.create().with_context(|| format!("making the clsact qdisc on {interface}"))?;
    let hook = hook.attach().with_context(|| format!("attaching {program_name} to {interface}"))?;
    Ok(Attached { hold: Hold::Filter(hook), mode: AttachMode::Clsact, ifindex, pin: None })
}

impl Attached {
    /// Takes over the link that an earlier agent pinned at `path` and makes it run `program`. `Ok(None)` when there is
    /// none, or when the interface that it was on is gone (then the pin is removed).
    pub fn take_over(path: &Path, program: BorrowedFd<'_>, ifindex: u32) -> Result<Option<Attached>> {
        let text = path.to_str().context("a pin path is ASCII")?;
        let c_path = std::ffi::CString::new(text).context("a pin path has no NUL")?;
        // SAFETY: a NUL-terminated path.
        let fd = match check(unsafe { libbpf_sys::bpf_obj_get(c_path.as_ptr()) }) {
            // SAFETY: a fresh descriptor that nobody else owns.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("opening the pinned link {text}")),
        };
        let mut info = libbpf_sys::bpf_link_info::default();
        let mut len = size_of_val(&info) as u32;
        // SAFETY: info is a zeroed bpf_link_info and len its size.
        let rc = unsafe {
            libbpf_sys::bpf_obj_get_info_by_fd(fd.as_raw_fd(), std::ptr::from_mut(&mut info).cast(), &mut len)
        };
        check(rc).with_context(|| format!("asking about the pinned link {text}"))?;
        // SAFETY: the kernel fills the member that belongs to the link's type, and every bit pattern is an integer.
        let (there, is_xdp) = unsafe {
            match info.type_ {
                libbpf_sys::BPF_LINK_TYPE_XDP => (info.__bindgen_anon_1.xdp.ifindex, true),
                _ => (info.__bindgen_anon_1.tcx.ifindex, false),
            }
        };
        if there != ifindex {
            // Its interface is gone; a new one of the same name has another index.
            drop(fd);
            std::fs::remove_file(path).with_context(|| format!("removing the stale pin {text}"))?;
            return Ok(None);
        }
        // SAFETY: two valid descriptors and no options.
        let rc = unsafe { libbpf_sys::bpf_link_update(fd.as_raw_fd(), program.as_raw_fd(), std::ptr::null()) };
        check(rc).with_context(|| format!("giving the pinned link {text} its new program"))?;
        let mode = match (is_xdp, other_xdp_mode(ifindex)) {
            (false, _) => AttachMode::Tcx,
            (true, mode) => mode,
        };
        Ok(Some(Attached { hold: Hold::Link(fd), mode, ifindex, pin: Some(path.to_owned()) }))
    }

    /// Pins the link, so that the program stays when the agent ends. A clsact filter stays by itself.
    pub fn pin(&mut self, path: &Path) -> Result<()> {
        let Hold::Link(link) = &self.hold else { return Ok(()) };
        if self.pin.is_some() {
            return Ok(());
        }
        let text = path.to_str().context("a pin path is ASCII")?;
        let c_path = std::ffi::CString::new(text).context("a pin path has no NUL")?;
        // SAFETY: a valid descriptor and a NUL-terminated path.
        let rc = unsafe { libbpf_sys::bpf_obj_pin(link.as_raw_fd(), c_path.as_ptr()) };
        check(rc).with_context(|| format!("pinning a link at {text}"))?;
        self.pin = Some(path.to_owned());
        Ok(())
    }

    /// Where it is pinned.
    pub fn pinned(&self) -> Option<&Path> {
        self.pin.as_deref()
    }

    /// Removes the pin: the program goes with the agent again.
    pub fn unpin(&mut self) -> Result<()> {
        if let Some(path) = self.pin.take() {
            std::fs::remove_file(&path).with_context(|| format!("removing the pin {}", path.display()))?;
        }
        Ok(())
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // A link goes with its descriptor, unless it is pinned; only a filter has to be taken away.
        if let Hold::Filter(hook) = &mut self.hold
            && let Err(error) = hook.detach()
        {
            log::warn!("taking a TC program off interface {}: {error}", self.ifindex);
        }
    }
}

fn other_xdp_mode(ifindex: u32) -> AttachMode {
    let mut options =
        libbpf_sys::bpf_xdp_query_opts { sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as _, ..Default::default() };
    // SAFETY: options is a whole bpf_xdp_query_opts of the size that it says.
    let rc = unsafe { libbpf_sys::bpf_xdp_query(ifindex as i32, 0, &mut options) };
    if check(rc).is_ok() && options.skb_prog_id != 0 { AttachMode::Generic } else { AttachMode::Native }
}

/// Index of an interface in this network namespace; `None` when there is none of that name.
pub fn ifindex(name: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(name).ok()
}

/// Name of an interface in this network namespace; `None` when none has this index.
pub fn interface_name(ifindex: u32) -> Option<String> {
    nix::net::if_::if_indextoname(ifindex).ok()?.into_string().ok()
}

/// Whether an interface of this network namespace is there and up.
pub fn is_up(name: &str) -> bool {
    let Ok(mut all) = nix::ifaddrs::getifaddrs() else { return false };
    all.any(|one| one.interface_name == name && one.flags.contains(nix::net::if_::InterfaceFlags::IFF_UP))
}

/// Mounts the BPF file system where it is not, as `on_exit = "keep"` needs it, and makes our directory there.
pub fn prepare_pins(dir: &Path) -> Result<()> {
    let root = Path::new("/sys/fs/bpf");
    let is_bpffs = |path: &Path| statfs(path).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    if !is_bpffs(root) {
        nix::mount::mount(Some("bpf"), root, Some("bpf"), nix::mount::MsFlags::empty(), None::<&str>)
            .context("mounting the BPF file system on /sys/fs/bpf")?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("guarding {}", dir.display()))
}

/// Whether anything is pinned in `dir`.
pub fn has_pins(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// Removes all pins in `dir` but the `wanted` ones, and the directory when none is left.
pub fn release_pins(dir: &Path, wanted: &[PathBuf]) -> Result<()> {
    // Without the directory nothing was ever pinned.
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(()) };
    let pins: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    for pin in pins.iter().filter(|pin| !wanted.contains(pin)) {
        std::fs::remove_file(pin).with_context(|| format!("removing the pin {}", pin.display()))?;
    }
    if wanted.is_empty() {
        std::fs::remove_dir(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    Ok(())
}

/// A descriptor of its own for a program or map.
pub fn duplicate(fd: &impl AsFd) -> Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned().context("duplicating a descriptor")
}
