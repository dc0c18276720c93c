//! The messages between the exporter and its supervisor. All messages have a fixed size, and descriptors are passed
//! with `SCM_RIGHTS`.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, sendmsg,
    socketpair,
};

use crate::sys;

/// A request of the exporter to the supervisor, encoded as two little-endian 64-bit integers: the kind of the request,
/// and a value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SupervisorRequest {
    /// Connect to the node through a new guard.
    Connect {
        /// Time for which the UTXO cache trace may delay the node in ten minutes; `None` for no limit.
        trace_budget: Option<Duration>,
    },
    /// Notify the service manager that the exporter serves HTTP requests (READY=1).
    Ready,
    /// Notify the service manager that the exporter's event loops do not hang (WATCHDOG=1).
    Watchdog,
    /// Notify the service manager that the exporter is stopping (STOPPING=1).
    Stopping,
    /// Read the resource usage of the node's process. The supervisor reads it for the exporter, because the kernel
    /// permits this only to a process of the same user that is not sandboxed.
    Usage,
}

const REQUEST_BYTES: usize = 16;
const NO_BUDGET: u64 = u64::MAX;

impl SupervisorRequest {
    fn encode(self) -> [u8; REQUEST_BYTES] {
        let (kind, value) = match self {
            SupervisorRequest::Connect { trace_budget } => {
                (0, trace_budget.map_or(NO_BUDGET, |budget| budget.as_micros() as u64))
            }
            SupervisorRequest::Ready => (1u64, 0),
            SupervisorRequest::Watchdog => (2, 0),
            SupervisorRequest::Stopping => (3, 0),
            SupervisorRequest::Usage => (4, 0),
        };
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..8].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, value) = bytes.split_at_checked(8)?;
        let value = u64::from_le_bytes(value.try_into().ok()?);
        Some(match u64::from_le_bytes(kind.try_into().ok()?) {
            0 => SupervisorRequest::Connect {
                trace_budget: (value != NO_BUDGET).then(|| Duration::from_micros(value)),
            },
            1 => SupervisorRequest::Ready,
            2 => SupervisorRequest::Watchdog,
            3 => SupervisorRequest::Stopping,
            4 => SupervisorRequest::Usage,
            _ => return None,
        })
    }

    /// Sends the request without blocking. Returns an error if the supervisor has exited or does not read its requests.
    pub fn send(self, channel: &OwnedFd) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(channel.as_raw_fd(), &self.encode(), flags)?;
        Ok(())
    }

    /// Receives the next request without blocking. Returns `Ok(None)` for an invalid message, `WouldBlock` if there is
    /// no message, and `UnexpectedEof` if the exporter has closed its end of the channel.
    pub fn receive(channel: &OwnedFd) -> io::Result<Option<Self>> {
        let mut bytes = [0; REQUEST_BYTES];
        match nix::sys::socket::recv(channel.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(SupervisorRequest::decode(&bytes[..read])),
        }
    }
}

/// The reason why the supervisor could not connect to the node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ConnectFailure {
    /// The inherited connection has been used already, and no socket path is configured.
    NoPath,
    /// connect(2) to the socket path failed with this errno.
    Connect(i32),
    /// Starting the guard process failed with this errno.
    Guard(i32),
    /// The maximum number of connections is reached, because guards of earlier connections still wait for responses of
    /// the node.
    Busy,
}

/// A response of the supervisor to the exporter. A [`Self::Connected`] message also passes [`CONNECTION_FDS`]
/// descriptors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SupervisorReply {
    /// The supervisor has started a guard on a connection to the node.
    Connected {
        /// PID of the guard.
        guard: i32,
        /// PID of the process at the other end of the node's socket; 0 if that process is in another PID namespace.
        node: i32,
        /// Whether the guard uses the inherited connection.
        inherited: bool,
    },
    /// The supervisor could not open the connection or could not start the guard.
    Failed(ConnectFailure),
    /// Resource usage of the node's process. A value of -1 means that the supervisor could not read it.
    Usage {
        /// Number of open file descriptors.
        fds: i64,
        /// Bytes read from storage devices.
        read_bytes: i64,
        /// Bytes written to storage devices.
        write_bytes: i64,
    },
}

/// Number of descriptors that are passed for a connection: the socket for Cap'n Proto messages, the socket for the
/// guard's events, and the socket for the supervisor's notices about the guard.
pub const CONNECTION_FDS: usize = 3;

const REPLY_WORDS: usize = 4;

impl SupervisorReply {
    fn encode(self) -> [u8; REPLY_WORDS * 8] {
        let words: [i64; REPLY_WORDS] = match self {
            SupervisorReply::Connected { guard, node, inherited } => {
                [0, guard.into(), node.into(), inherited.into()]
            }
            SupervisorReply::Failed(ConnectFailure::NoPath) => [1, 0, 0, 0],
            SupervisorReply::Failed(ConnectFailure::Connect(errno)) => [2, errno.into(), 0, 0],
            SupervisorReply::Failed(ConnectFailure::Guard(errno)) => [3, errno.into(), 0, 0],
            SupervisorReply::Failed(ConnectFailure::Busy) => [4, 0, 0, 0],
            SupervisorReply::Usage { fds, read_bytes, write_bytes } => [5, fds, read_bytes, write_bytes],
        };
        let mut bytes = [0; REPLY_WORDS * 8];
        for (slot, word) in bytes.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; REPLY_WORDS * 8]) -> Option<Self> {
        let word = |i: usize| i64::from_le_bytes(bytes[i * 8..][..8].try_into().expect("eight bytes"));
        let small = |i: usize| i32::try_from(word(i)).ok();
        Some(match word(0) {
            0 => SupervisorReply::Connected { guard: small(1)?, node: small(2)?, inherited: word(3) != 0 },
            1 => SupervisorReply::Failed(ConnectFailure::NoPath),
            2 => SupervisorReply::Failed(ConnectFailure::Connect(small(1)?)),
            3 => SupervisorReply::Failed(ConnectFailure::Guard(small(1)?)),
            4 => SupervisorReply::Failed(ConnectFailure::Busy),
            5 => SupervisorReply::Usage { fds: word(1), read_bytes: word(2), write_bytes: word(3) },
            _ => return None,
        })
    }

    /// Sends the response and passes these descriptors, without blocking.
    pub fn send(self, channel: &OwnedFd, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = self.encode();
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None)?;
        Ok(())
    }

    /// Receives the next response and its descriptors, without blocking.
    pub fn receive(channel: &OwnedFd) -> io::Result<(Self, Vec<OwnedFd>)> {
        let mut bytes = [0; REPLY_WORDS * 8];
        let mut control = nix::cmsg_space!([RawFd; CONNECTION_FDS]);
        let mut vectors = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(channel.as_raw_fd(), &mut vectors, Some(&mut control), flags)?;
        let received = message.bytes;
        let fds = message.cmsgs()?.filter_map(|message| match message {
            ControlMessageOwned::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds = fds.flatten().map(sys::received).collect();
        match SupervisorReply::decode(&bytes) {
            Some(reply) if received == bytes.len() => Ok((reply, fds)),
            _ if received == 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

/// Creates the two ends of the channel: connected sockets that preserve message boundaries.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent() {
        let (exporter, supervisor) = pair().unwrap();
        let requests = [
            SupervisorRequest::Connect { trace_budget: None },
            SupervisorRequest::Connect { trace_budget: Some(Duration::from_millis(50)) },
            SupervisorRequest::Ready,
            SupervisorRequest::Watchdog,
            SupervisorRequest::Stopping,
            SupervisorRequest::Usage,
        ];
        for request in requests {
            request.send(&exporter).unwrap();
            assert_eq!(SupervisorRequest::receive(&supervisor).unwrap(), Some(request));
        }
        let file = std::fs::File::open("/dev/null").unwrap();
        let replies = [
            (
                SupervisorReply::Connected { guard: 7, node: 0, inherited: true },
                vec![file.as_fd(); CONNECTION_FDS],
            ),
            (SupervisorReply::Failed(ConnectFailure::NoPath), vec![]),
            (SupervisorReply::Failed(ConnectFailure::Connect(111)), vec![]),
            (SupervisorReply::Failed(ConnectFailure::Guard(11)), vec![]),
            (SupervisorReply::Failed(ConnectFailure::Busy), vec![]),
            (SupervisorReply::Usage { fds: -1, read_bytes: 1 << 40, write_bytes: 0 }, vec![]),
        ];
        for (reply, fds) in replies {
            reply.send(&supervisor, &fds).unwrap();
            let (received, received_fds) = SupervisorReply::receive(&exporter).unwrap();
            assert_eq!((received, received_fds.len()), (reply, fds.len()));
        }
    }

    #[test]
    fn other_messages_are_no_request() {
        let (exporter, supervisor) = pair().unwrap();
        for bytes in [&b"x"[..], &[0; 15], &[9; 16], &[0; 4000]] {
            send(exporter.as_raw_fd(), bytes, MsgFlags::empty()).unwrap();
            let received = SupervisorRequest::receive(&supervisor).unwrap();
            // Receiving truncates a longer message to a valid size, so it can be valid.
            assert!(received.is_none() || bytes.len() > REQUEST_BYTES, "{bytes:?}: {received:?}");
        }
        drop(exporter);
        assert_eq!(SupervisorRequest::receive(&supervisor).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
