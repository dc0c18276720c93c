//! The allow-lists of system calls (seccomp). A call that is not on the list fails with EPERM.
//!
//! The lists were determined with strace on each kind of node, with TLS, renewed certificates, JSON-RPC over HTTP, the journal and log
//! files, and with the integration tests, which run with these lists.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
    apply_filter_all_threads,
};

/// Result of building or applying a system call filter.
pub type Result<T> = std::result::Result<T, seccompiler::Error>;

/// An allow-list of system calls. A call is allowed with any arguments, or only with some.
#[derive(Default)]
pub struct SyscallList(BTreeMap<i64, Vec<SeccompRule>>);

impl SyscallList {
    fn any(mut self, calls: &[i64]) -> Self {
        self.0.extend(calls.iter().map(|&call| (call, Vec::new())));
        self
    }

    /// Allows a call if the argument at this position, masked with `mask`, equals `value`.
    fn masked(self, call: i64, argument: u8, mask: u64, value: u64) -> Result<Self> {
        self.when(call, SeccompCondition::new(argument, Qword, MaskedEq(mask), value)?)
    }

    /// Allows a call if the argument at this position is one of `values`.
    fn with(mut self, call: i64, argument: u8, values: &[i64]) -> Result<Self> {
        for &value in values {
            self = self.when(call, SeccompCondition::new(argument, Dword, Eq, value as u32 as u64)?)?;
        }
        Ok(self)
    }

    fn when(mut self, call: i64, condition: SeccompCondition) -> Result<Self> {
        self.0.entry(call).or_default().push(SeccompRule::new(vec![condition])?);
        Ok(self)
    }

    /// Applies the list to all threads of this process. It cannot be removed.
    pub fn apply(self) -> Result<()> {
        // A filter cannot inspect the arguments of clone3(). The C library uses clone() if clone3() fails with ENOSYS. If two filters deny
        // a call, the one that was installed last determines the error. The list therefore allows clone3(), and this filter denies it.
        let without_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        let no_such_call = SeccompAction::Errno(libc::ENOSYS as u32);
        let without_clone3 = compile(without_clone3, SeccompAction::Allow, no_such_call)?;
        let denied = SeccompAction::Errno(libc::EPERM as u32);
        let list = compile(self.any(&[libc::SYS_clone3]).0, denied, SeccompAction::Allow)?;
        apply_filter_all_threads(&without_clone3)?;
        apply_filter_all_threads(&list)
    }
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    other: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, other, listed, arch)?.try_into()?)
}

/// Calls that every process makes: memory, time, its own threads and signals.
fn base() -> Result<SyscallList> {
    let pid = i64::from(nix::unistd::getpid().as_raw());
    SyscallList::default()
        .any(&[
            libc::SYS_brk,
            libc::SYS_madvise,
            libc::SYS_mremap,
            libc::SYS_munmap,
            // The C library normally reads clocks without a system call, but not on every machine.
            libc::SYS_clock_getres,
            libc::SYS_clock_gettime,
            libc::SYS_clock_nanosleep,
            libc::SYS_gettimeofday,
            libc::SYS_nanosleep,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_futex,
            libc::SYS_getpid,
            libc::SYS_getrandom, // seeds of hash maps
            libc::SYS_gettid,
            libc::SYS_restart_syscall,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sched_yield,
            libc::SYS_sigaltstack,
            // Reads and writes of open descriptors.
            libc::SYS_close,
            libc::SYS_ppoll,
            libc::SYS_pread64,
            libc::SYS_read,
            libc::SYS_readv,
            libc::SYS_recvfrom,
            libc::SYS_sendto,
            libc::SYS_shutdown,
            libc::SYS_write,
            libc::SYS_writev,
        ])
        .any(OF_X86_64)
        // Memory cannot be made executable.
        .masked(libc::SYS_mmap, 2, libc::PROT_EXEC as u64, 0)?
        .masked(libc::SYS_mprotect, 2, libc::PROT_EXEC as u64, 0)?
        // For abort() of this process.
        .with(libc::SYS_tgkill, 0, &[pid])?
        // For nonblocking sockets, and for the check whether stderr is a terminal.
        .with(libc::SYS_ioctl, 1, &[libc::FIONBIO as i64, libc::TCGETS as i64])?
        .with(libc::SYS_fcntl, 1, &FCNTL)
}

const FCNTL: [i64; 7] = [
    libc::F_GETFD as i64,
    libc::F_SETFD as i64,
    libc::F_GETFL as i64,
    libc::F_SETFL as i64,
    libc::F_DUPFD_CLOEXEC as i64,
    libc::F_ADD_SEALS as i64, // for a long journal entry
    libc::F_GET_SEALS as i64,
];

/// Older variants of system calls that only x86_64 has.
#[cfg(target_arch = "x86_64")]
const OF_X86_64: &[i64] = &[libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OF_X86_64: &[i64] = &[];

/// Calls of a guard: those of every process, and writing its subscription store.
pub fn guard() -> Result<SyscallList> {
    Ok(base()?.any(&[libc::SYS_pwrite64]))
}

/// Calls of both exporters: threads, reading files, serving HTTP.
fn exporter() -> Result<SyscallList> {
    let list = base()?
        .any(&[
            // Threads.
            libc::SYS_membarrier,
            libc::SYS_rseq,
            libc::SYS_sched_getaffinity,
            libc::SYS_set_robust_list,
            libc::SYS_getpriority,
            libc::SYS_setpriority, // to lower the priority of a thread
            // Event loops.
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_pwait,
            libc::SYS_eventfd2,
            // Reading files and /proc. Which files can be opened is restricted below.
            libc::SYS_faccessat,
            libc::SYS_faccessat2,
            libc::SYS_fstat,
            libc::SYS_fstatfs,
            libc::SYS_getcwd,
            libc::SYS_getdents64,
            libc::SYS_lseek,
            libc::SYS_newfstatat,
            libc::SYS_readlinkat,
            libc::SYS_statfs,
            libc::SYS_statx,
            // Watching for the node's exit, and reading the user ID.
            libc::SYS_pidfd_open,
            libc::SYS_getegid,
            libc::SYS_geteuid,
            libc::SYS_getgid,
            libc::SYS_getuid,
            libc::SYS_uname,
            // Reading the error of the clock. Setting the clock needs a capability.
            libc::SYS_adjtimex,
            // HTTP connections, and descriptors from the supervisor.
            libc::SYS_accept4,
            libc::SYS_getpeername,
            libc::SYS_getsockname,
            libc::SYS_getsockopt,
            libc::SYS_recvmsg,
            libc::SYS_sendmsg,
            libc::SYS_setsockopt,
            // For a long journal entry.
            libc::SYS_ftruncate,
            libc::SYS_memfd_create,
        ])
        .any(FILES_OF_X86_64)
        // New threads are allowed, new processes are not.
        .masked(libc::SYS_clone, 0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64)?
        // Names of threads and of memory mappings.
        .with(libc::SYS_prctl, 0, &[libc::PR_SET_NAME as i64, libc::PR_SET_VMA as i64])?
        // Resource limits can be read but not set.
        .masked(libc::SYS_prlimit64, 2, u64::MAX, 0)?;
    Ok(list)
}

#[cfg(target_arch = "x86_64")]
const FILES_OF_X86_64: &[i64] =
    &[libc::SYS_access, libc::SYS_epoll_wait, libc::SYS_lstat, libc::SYS_readlink, libc::SYS_stat];
#[cfg(not(target_arch = "x86_64"))]
const FILES_OF_X86_64: &[i64] = &[];

/// Flags of open() that create, write or truncate a file.
const WRITING: u64 = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;

/// Allows opening files for reading only.
fn reads_files(list: SyscallList) -> Result<SyscallList> {
    let list = list.masked(libc::SYS_openat, 2, WRITING, libc::O_RDONLY as u64)?;
    #[cfg(target_arch = "x86_64")]
    let list = list.masked(libc::SYS_open, 1, WRITING, libc::O_RDONLY as u64)?;
    Ok(list)
}

/// Allows what SQLite needs to write the block log. Files may be opened for writing.
fn writes_block_log(list: SyscallList) -> Result<SyscallList> {
    let list = list
        .any(UNLINK)
        .any(&[
            libc::SYS_openat,
            libc::SYS_fallocate,
            libc::SYS_fchmod,
            libc::SYS_fchown,
            libc::SYS_fdatasync,
            libc::SYS_flock,
            libc::SYS_fsync,
            libc::SYS_pwrite64,
        ])
        // File locks of SQLite.
        .with(libc::SYS_fcntl, 1, &[libc::F_GETLK as i64, libc::F_SETLK as i64, libc::F_SETLKW as i64])?;
    #[cfg(target_arch = "x86_64")]
    let list = list.any(&[libc::SYS_open]);
    Ok(list)
}

/// Calls of the IPC exporter. It may create TCP and UDP sockets, for JSON-RPC over HTTP, the block store and DNS, but no Unix sockets: it
/// cannot connect to the node.
pub fn ipc_exporter(has_block_log: bool) -> Result<SyscallList> {
    let list = exporter()?;
    let list = if has_block_log { writes_block_log(list)? } else { reads_files(list)? };
    list.any(CONNECT).with(libc::SYS_socket, 0, &[libc::AF_INET as i64, libc::AF_INET6 as i64])
}

/// Connecting to a server, and the queries of the C library to DNS.
const CONNECT: &[i64] = &[libc::SYS_connect, libc::SYS_sendmmsg];

/// What the USDT exporter does beyond tracing and serving.
#[cfg(feature = "usdt")]
#[derive(Clone, Copy, Debug)]
pub struct UsdtNeeds {
    /// It writes a block log.
    pub writes_block_log: bool,
    /// It connects to a block store.
    pub has_store: bool,
    /// It removes the file of its own Unix socket.
    pub removes_socket: bool,
}

/// Calls of the USDT exporter, including those that attach to the next node. With a block log it may open files for writing.
#[cfg(feature = "usdt")]
pub fn usdt_exporter(needs: UsdtNeeds) -> Result<SyscallList> {
    let removes: &[i64] = if needs.removes_socket { UNLINK } else { &[] };
    let list = exporter()?
        .any(removes)
        .any(&[libc::SYS_bpf, libc::SYS_perf_event_open])
        // Enabling and disabling tracepoint events.
        .with(libc::SYS_ioctl, 1, &PERF_EVENTS)?;
    let list = match needs.has_store {
        true => list.any(CONNECT).with(
            libc::SYS_socket,
            0,
            &[libc::AF_INET as i64, libc::AF_INET6 as i64, libc::AF_UNIX as i64],
        )?,
        false => list,
    };
    if needs.writes_block_log { writes_block_log(list) } else { reads_files(list) }
}

#[cfg(target_arch = "x86_64")]
const UNLINK: &[i64] = &[libc::SYS_unlink, libc::SYS_unlinkat];
#[cfg(not(target_arch = "x86_64"))]
const UNLINK: &[i64] = &[libc::SYS_unlinkat];

/// The ioctl requests PERF_EVENT_IOC_ENABLE, _DISABLE and _SET_BPF.
#[cfg(feature = "usdt")]
const PERF_EVENTS: [i64; 3] = [0x2400, 0x2401, 0x4004_2408];
