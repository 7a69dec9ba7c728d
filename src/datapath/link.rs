//! XDP links: one program on one interface, in the mode that was asked for.
//!
//! Owns the choice between native and generic, and what to tell the operator when the kernel refuses.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::query::ProgInfoIter;
use log::warn;
use nix::errno::Errno;

use super::Error;
use crate::config::XdpMode;

/// How the kernel runs the program on an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before a packet buffer is made.
    Native,
    /// In the stack. Works on any interface, several times slower.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Native => "native",
            Mode::Generic => "generic",
        })
    }
}

/// Attaches `program` to an interface. XDP stays for as long as the link's descriptor is open.
///
/// # Errors
/// When the kernel refuses, or the interface has another XDP program; it is then as before.
pub(crate) fn attach(
    program: BorrowedFd<'_>,
    name: &str,
    ifindex: u32,
    mode: XdpMode,
) -> Result<(OwnedFd, Mode), Error> {
    let failed = |error: &io::Error, mode: Mode| Error::Attach {
        interface: name.to_owned(),
        reason: explain(name, ifindex, error, mode),
    };
    if mode == XdpMode::Generic {
        return create_link(program, ifindex, Mode::Generic)
            .map(|link| (link, Mode::Generic))
            .map_err(|error| failed(&error, Mode::Generic));
    }
    match create_link(program, ifindex, Mode::Native) {
        Ok(link) => Ok((link, Mode::Native)),
        Err(error) if mode == XdpMode::Auto && lacks_native(&error) => {
            warn!(
                    "{}: no native XDP here ({error}); using generic XDP, which is several times slower",
                    name
                );
            create_link(program, ifindex, Mode::Generic)
                .map(|link| (link, Mode::Generic))
                .map_err(|error| failed(&error, Mode::Generic))
        }
        Err(error) => Err(failed(&error, Mode::Native)),
    }
}

/// A link rather than a netlink attachment: it ends with the process, and no other program can replace it.
fn create_link(program: BorrowedFd<'_>, ifindex: u32, mode: Mode) -> io::Result<OwnedFd> {
    let options = libbpf_sys::bpf_link_create_opts {
        sz: size_of::<libbpf_sys::bpf_link_create_opts>() as _,
        flags: match mode {
            Mode::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
            Mode::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
        },
        ..Default::default()
    };
    let target = i32::try_from(ifindex).map_err(io::Error::other)?;
    // SAFETY: the program's descriptor is open, and `options` is initialised and outlives the call.
    let fd = unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), target, libbpf_sys::BPF_XDP, &options)
    };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: a new descriptor that nobody else has.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets a link's interface run another program, from one packet to the next. One whose interface is gone is
/// left alone.
///
/// # Errors
/// When the kernel refuses; the program that it ran goes on.
pub(crate) fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: both descriptors are open, and no options are given.
    let error = unsafe {
        libbpf_sys::bpf_link_update(link.as_raw_fd(), program.as_raw_fd(), std::ptr::null())
    };
    match Errno::from_raw(-error) {
        _ if error == 0 => Ok(()),
        Errno::ENOLINK => Ok(()),
        errno => Err(errno.into()),
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

/// Whether the driver has no native XDP, or not for this interface as it is set up.
fn lacks_native(error: &io::Error) -> bool {
    matches!(
        errno(error),
        Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ERANGE
    )
}

fn explain(name: &str, ifindex: u32, error: &io::Error, mode: Mode) -> String {
    let remedy = match errno(error) {
        Errno::EBUSY | Errno::EEXIST => format!(
            "it has another XDP program{}; stop the program that attached it, or: ip link set dev {name} xdp off",
            other_program(ifindex)
        ),
        Errno::ENODEV => "the interface has gone; see: ip link".into(),
        Errno::EPERM => "xdplb needs CAP_NET_ADMIN and CAP_BPF, or root".into(),
        _ if mode == Mode::Native => format!(
            "the driver refuses native XDP as the interface is set up (MTU, queues, LRO; a bond or VLAN may need it on \
             the device below); see dmesg and `ethtool -i {name}`, or use generic XDP (datapath.xdp_mode, --xdp-mode)"
        ),
        _ => "see dmesg".into(),
    };
    format!("{error}: {remedy}")
}

/// Id and name of the XDP program that is there, if that can be learnt.
fn other_program(ifindex: u32) -> String {
    let mut id = 0;
    let Ok(target) = i32::try_from(ifindex) else {
        return String::new();
    };
    // SAFETY: `id` is valid for the call, which writes it.
    if unsafe { libbpf_sys::bpf_xdp_query_id(target, 0, &mut id) } != 0 || id == 0 {
        return String::new();
    }
    let name = ProgInfoIter::default()
        .find(|info| info.id == id)
        .map(|info| info.name.to_string_lossy().into_owned());
    match name {
        Some(name) if !name.is_empty() => format!(", {name} (id {id})"),
        _ => format!(" (id {id})"),
    }
}
