//! Why the kernel refuses programs or maps: what libbpf said during a load, and what usually helps.

use std::sync::Mutex;

use libbpf_rs::PrintLevel;
use log::debug;

use super::Error;

/// The messages of libbpf during a load, kept for the error if there is one.
static LIBBPF_LOG: Mutex<String> = Mutex::new(String::new());

fn keep_libbpf_log(level: PrintLevel, message: String) {
    debug!(target: "libbpf", "{}", message.trim_end());
    if level == PrintLevel::Warn {
        if let Ok(mut log) = LIBBPF_LOG.lock() {
            log.push_str(&message);
        }
    }
}

/// To be called before a load, so that [`refused`] has the messages of libbpf during it and no older ones.
pub(crate) fn begin() {
    libbpf_rs::set_print(Some((PrintLevel::Info, keep_libbpf_log)));
    if let Ok(mut log) = LIBBPF_LOG.lock() {
        log.clear();
    }
}

/// The error of a load that failed.
pub(crate) fn refused(source: libbpf_rs::Error) -> Error {
    Error::Load {
        remedy: load_remedy(&source),
        source,
    }
}

/// The messages of libbpf and the kernel, cut to the last lines, and the usual remedy.
fn load_remedy(error: &libbpf_rs::Error) -> String {
    let log = LIBBPF_LOG.lock().map(|log| log.clone()).unwrap_or_default();
    let said: Vec<&str> = log
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let tail = said[said.len().saturating_sub(6)..].join("\n  ");
    let hint = match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => {
            "it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, or root; if it has them, the verifier's words are above"
        }
        _ if log.contains("EMFILE") => {
            "it has no descriptors left: raise the limit of open files (ulimit -n; systemd: LimitNOFILE=)"
        }
        _ if log.contains("failed to create") => {
            "a table is too large for this kernel or its memory: lower [limits]; `xdplb check` shows what they take"
        }
        _ => "it needs Linux 6.1 or newer with BPF and BTF (CONFIG_DEBUG_INFO_BTF)",
    };
    let separator = if tail.is_empty() { "" } else { "\n  " };
    format!("{separator}{tail}; {hint}")
}
