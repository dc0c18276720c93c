//! The allow-lists of system calls (seccomp): one each for the IPC exporter, the USDT exporter and the guard (a
//! separate process of the IPC exporter, which has the connection to the node). A system call that is not on a
//! process's list fails with EPERM.
//!
//! The lists were determined with strace. For this, the exporters ran with nodes of Bitcoin Core 30.0, 31 and 31.99 and
//! of the branch with the Tracing interface, with TLS, renewed certificates and JSON-RPC over HTTP, and with systemd's
//! journal and files as log targets. The integration tests run with these lists.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

/// An allow-list of system calls: for each allowed call, the conditions on its arguments. A call without conditions is
/// allowed with any arguments.
#[derive(Default)]
pub struct SyscallList(BTreeMap<i64, Vec<SeccompRule>>);

impl SyscallList {
    fn any(mut self, calls: &[i64]) -> Self {
        self.0.extend(calls.iter().map(|&call| (call, Vec::new())));
        self
    }

    /// Allows a call if its argument at the position `argument`, after a bitwise AND with `mask`, equals `value`.
    fn masked(self, call: i64, argument: u8, mask: u64, value: u64) -> Self {
        self.when(call, vec![condition(argument, Qword, MaskedEq(mask), value)])
    }

    /// Allows a call if its argument at the position `argument` is one of `values`.
    fn with(self, call: i64, argument: u8, values: &[i64]) -> Self {
        values.iter().fold(self, |list, &value| list.when(call, vec![equals(argument, value)]))
    }

    /// Allows a call if all of these conditions hold.
    fn when(mut self, call: i64, conditions: Vec<SeccompCondition>) -> Self {
        let rule = SeccompRule::new(conditions).expect("there are conditions");
        self.0.entry(call).or_default().push(rule);
        self
    }

    /// Allows connecting to a server with TCP, and the DNS queries of the C library.
    fn connects(self) -> Self {
        self.any(&[libc::SYS_connect]).masked(libc::SYS_sendmmsg, 3, FAST_OPEN, 0).internet_sockets()
    }

    /// Allows the creation of TCP and UDP sockets, but of no other internet sockets. The IPC exporter's rules of
    /// Landlock restrict the ports of TCP connections, but not of MPTCP and SCTP, with which a process could connect to
    /// any port.
    fn internet_sockets(mut self) -> Self {
        /// Mask of the socket type without the flags SOCK_CLOEXEC and SOCK_NONBLOCK.
        const TYPE: u64 = 0xf;
        let kinds = [(libc::SOCK_STREAM, libc::IPPROTO_TCP), (libc::SOCK_DGRAM, libc::IPPROTO_UDP)];
        for family in [libc::AF_INET, libc::AF_INET6] {
            for (kind, protocol) in kinds.into_iter().flat_map(|(kind, number)| [(kind, 0), (kind, number)]) {
                let conditions = vec![
                    equals(0, family.into()),
                    condition(1, Dword, MaskedEq(TYPE), kind as u64),
                    equals(2, protocol.into()),
                ];
                self = self.when(libc::SYS_socket, conditions);
            }
        }
        self
    }

    /// Applies the list to all threads of this process. The kernel does not permit a process to remove a list that has
    /// been applied.
    ///
    /// # Errors
    /// The processor architecture is not supported, or the kernel rejects the filter.
    pub fn apply(self) -> Result<(), seccompiler::Error> {
        // A filter cannot inspect the arguments of clone3(), so clone3() is denied with ENOSYS, after which the C
        // library uses clone(). If two filters deny a call, the filter that was installed last determines the error.
        // The list therefore allows clone3(), and a separate filter denies it.
        let without_clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        let no_such_call = SeccompAction::Errno(libc::ENOSYS as u32);
        let without_clone3 = compile(without_clone3, SeccompAction::Allow, no_such_call)?;
        let denied = SeccompAction::Errno(libc::EPERM as u32);
        let list = compile(self.any(&[libc::SYS_clone3]).0, denied, SeccompAction::Allow)?;
        apply_filter_all_threads(&without_clone3)?;
        apply_filter_all_threads(&list)
    }
}

fn equals(argument: u8, value: i64) -> SeccompCondition {
    condition(argument, Dword, Eq, value as u32 as u64)
}

fn condition(argument: u8, length: SeccompCmpArgLen, is: SeccompCmpOp, value: u64) -> SeccompCondition {
    SeccompCondition::new(argument, length, is, value).expect("a system call has six arguments")
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    other: SeccompAction,
    listed: SeccompAction,
) -> Result<BpfProgram, seccompiler::Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, other, listed, arch)?.try_into()?)
}

/// The system calls that the exporters and the guard need: for memory, time, the process's own threads and signals, and
/// open descriptors.
fn base() -> SyscallList {
    let pid = i64::from(nix::unistd::getpid().as_raw());
    SyscallList::default()
        .any(&[
            libc::SYS_brk,
            libc::SYS_madvise,
            libc::SYS_mremap,
            libc::SYS_munmap,
            // On some machines the C library cannot read clocks in the vDSO, and uses these system calls.
            libc::SYS_clock_getres,
            libc::SYS_clock_gettime,
            libc::SYS_clock_nanosleep,
            libc::SYS_gettimeofday,
            libc::SYS_nanosleep,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_futex,
            libc::SYS_getpid,
            libc::SYS_getrandom, // hash maps need random seeds
            libc::SYS_gettid,
            libc::SYS_restart_syscall,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sched_yield,
            libc::SYS_sigaltstack,
            // Reading, writing and closing open descriptors.
            libc::SYS_close,
            libc::SYS_ppoll,
            libc::SYS_pread64,
            libc::SYS_read,
            libc::SYS_readv,
            libc::SYS_recvfrom,
            libc::SYS_shutdown,
            libc::SYS_write,
            libc::SYS_writev,
        ])
        .any(OF_X86_64)
        .masked(libc::SYS_sendto, 3, FAST_OPEN, 0)
        // Mapping memory is allowed only without PROT_EXEC, so the process cannot create executable memory.
        .masked(libc::SYS_mmap, 2, libc::PROT_EXEC as u64, 0)
        .masked(libc::SYS_mprotect, 2, libc::PROT_EXEC as u64, 0)
        // abort() sends a signal to its own process with tgkill().
        .with(libc::SYS_tgkill, 0, &[pid])
        // FIONBIO makes sockets nonblocking, and TCGETS checks whether stderr is a terminal.
        .with(libc::SYS_ioctl, 1, &[libc::FIONBIO as i64, libc::TCGETS as i64])
        .with(libc::SYS_fcntl, 1, &FCNTL)
}

/// The flag with which sendto(), sendmsg() and sendmmsg() also connect the socket. The lists do not permit the flag,
/// because Landlock checks the port only in connect(), and a process could use the flag to connect to any port.
const FAST_OPEN: u64 = libc::MSG_FASTOPEN as u64;

const FCNTL: [i64; 7] = [
    libc::F_GETFD as i64,
    libc::F_SETFD as i64,
    libc::F_GETFL as i64,
    libc::F_SETFL as i64,
    libc::F_DUPFD_CLOEXEC as i64,
    libc::F_ADD_SEALS as i64, // a long journal entry is passed in a sealed memfd
    libc::F_GET_SEALS as i64,
];

/// Older variants of system calls, which exist on x86_64 but not on arm64.
#[cfg(target_arch = "x86_64")]
const OF_X86_64: &[i64] = &[libc::SYS_poll, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const OF_X86_64: &[i64] = &[];

/// The system calls of a guard: the calls of `base`, and pwrite64() for the subscription store, a memory file with the
/// guard's active subscriptions. If the guard is killed, its replacement reads the file.
pub fn guard() -> SyscallList {
    base().any(&[libc::SYS_pwrite64])
}

/// The system calls that both exporters need: threads, event loops, reading files, serving HTTP.
fn exporter() -> SyscallList {
    base()
        .any(&[
            // Creating threads and setting their priority.
            libc::SYS_membarrier,
            libc::SYS_rseq,
            libc::SYS_sched_getaffinity,
            libc::SYS_set_robust_list,
            libc::SYS_getpriority,
            // Event loops (epoll).
            libc::SYS_epoll_create1,
            libc::SYS_epoll_ctl,
            libc::SYS_epoll_pwait,
            libc::SYS_eventfd2,
            // Reading files and /proc. The rules for open() and openat() are in `reads_files` and `writes_block_log`.
            // In the IPC exporter, Landlock restricts the paths.
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
            // Detecting the node's exit, and reading user and group IDs and the kernel's version.
            libc::SYS_pidfd_open,
            libc::SYS_getegid,
            libc::SYS_geteuid,
            libc::SYS_getgid,
            libc::SYS_getuid,
            libc::SYS_uname,
            // adjtimex() reads the estimated error of the system clock. Setting the clock requires the capability
            // CAP_SYS_TIME.
            libc::SYS_adjtimex,
            // Accepting HTTP connections, and receiving file descriptors from the supervisor, the process that starts
            // the exporter.
            libc::SYS_accept4,
            libc::SYS_getpeername,
            libc::SYS_getsockname,
            libc::SYS_getsockopt,
            libc::SYS_recvmsg,
            libc::SYS_setsockopt,
            // A log entry that is too long for a datagram is passed to systemd's journal in a memfd.
            libc::SYS_ftruncate,
            libc::SYS_memfd_create,
        ])
        .any(FILES_OF_X86_64)
        .masked(libc::SYS_sendmsg, 2, FAST_OPEN, 0)
        // setpriority() is allowed only for the calling thread, because the node may run as the same user and must keep
        // its priority.
        .when(libc::SYS_setpriority, vec![equals(0, libc::PRIO_PROCESS as i64), equals(1, 0)])
        // clone() is allowed only with CLONE_THREAD: the process can create threads, but no processes.
        .masked(libc::SYS_clone, 0, libc::CLONE_THREAD as u64, libc::CLONE_THREAD as u64)
        // Setting the names of threads and of memory mappings.
        .with(libc::SYS_prctl, 0, &[libc::PR_SET_NAME as i64, libc::PR_SET_VMA as i64])
        // prlimit64() is allowed only without new limits, so the process can read its resource limits but not change
        // them.
        .masked(libc::SYS_prlimit64, 2, u64::MAX, 0)
}

#[cfg(target_arch = "x86_64")]
const FILES_OF_X86_64: &[i64] =
    &[libc::SYS_access, libc::SYS_epoll_wait, libc::SYS_lstat, libc::SYS_readlink, libc::SYS_stat];
#[cfg(not(target_arch = "x86_64"))]
const FILES_OF_X86_64: &[i64] = &[];

/// Bits of the flags of open() that select write access, create a file or truncate a file.
const WRITING: u64 = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;

/// Allows opening files, but only for reading.
fn reads_files(list: SyscallList) -> SyscallList {
    #[cfg(target_arch = "x86_64")]
    let list = list.masked(libc::SYS_open, 1, WRITING, libc::O_RDONLY as u64);
    list.masked(libc::SYS_openat, 2, WRITING, libc::O_RDONLY as u64)
}

/// Allows the system calls with which SQLite writes the block log, the file with a row for each block. The list itself
/// permits opening any file for writing. In the IPC exporter, Landlock restricts the paths.
fn writes_block_log(list: SyscallList) -> SyscallList {
    #[cfg(target_arch = "x86_64")]
    let list = list.any(&[libc::SYS_open]);
    list.any(UNLINK)
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
        // SQLite locks the files of the block log with fcntl().
        .with(libc::SYS_fcntl, 1, &[libc::F_GETLK as i64, libc::F_SETLK as i64, libc::F_SETLKW as i64])
}

/// The system calls of the IPC exporter. The exporter may create TCP and UDP sockets, for JSON-RPC over HTTP, the block
/// store and DNS, but no Unix sockets. It therefore cannot connect to the node's IPC socket itself; the guard has this
/// connection.
pub fn ipc_exporter(has_block_log: bool) -> SyscallList {
    let list = if has_block_log { writes_block_log(exporter()) } else { reads_files(exporter()) };
    list.connects()
}

/// The optional tasks of the USDT exporter that need further system calls.
#[cfg(feature = "usdt")]
#[derive(Clone, Copy, Debug)]
pub struct UsdtNeeds {
    /// Whether the exporter writes a block log.
    pub writes_block_log: bool,
    /// Whether the exporter connects to a block store.
    pub has_store: bool,
    /// Whether the exporter removes the file of the Unix socket on which it serves HTTP.
    pub removes_socket: bool,
}

/// The system calls of the USDT exporter, including the calls that attach to the tracepoints of a restarted node. The
/// exporter may open files for writing only if it writes a block log, and create Unix sockets only if it connects to a
/// block store.
#[cfg(feature = "usdt")]
pub fn usdt_exporter(needs: UsdtNeeds) -> SyscallList {
    let mut list = exporter()
        .any(&[libc::SYS_bpf, libc::SYS_perf_event_open])
        // The ioctl requests that attach BPF programs to tracepoints, and enable and disable the attached programs.
        .with(libc::SYS_ioctl, 1, &PERF_EVENTS);
    if needs.removes_socket {
        list = list.any(UNLINK);
    }
    if needs.has_store {
        list = list.connects().with(libc::SYS_socket, 0, &[libc::AF_UNIX as i64]);
    }
    if needs.writes_block_log { writes_block_log(list) } else { reads_files(list) }
}

#[cfg(target_arch = "x86_64")]
const UNLINK: &[i64] = &[libc::SYS_unlink, libc::SYS_unlinkat];
#[cfg(not(target_arch = "x86_64"))]
const UNLINK: &[i64] = &[libc::SYS_unlinkat];

/// The ioctl requests PERF_EVENT_IOC_ENABLE, _DISABLE and _SET_BPF.
#[cfg(feature = "usdt")]
const PERF_EVENTS: [i64; 3] = [0x2400, 0x2401, 0x4004_2408];
