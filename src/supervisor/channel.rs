//! The messages between the exporter and its supervisor, the parent process that connects to the node and starts guards
//! (processes that relay messages between the node and the exporter). The size of a message is limited, and descriptors
//! are passed with `SCM_RIGHTS`.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, sendmsg,
    socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::sys;
use crate::systemd::Notification;

/// A request of the exporter to the supervisor.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum SupervisorRequest {
    /// Connect to the node through a new guard.
    Connect {
        /// Time for which the UTXO cache trace may delay the node in ten minutes; `None` for no limit.
        trace_budget: Option<Duration>,
    },
    /// Notify the service manager of this state of the exporter.
    Notify(Notification),
    /// Read the resource usage of the node's process. The supervisor reads the usage for the exporter, because the
    /// kernel permits the access only to a process of the node's user that is not sandboxed.
    Usage,
}

impl SupervisorRequest {
    /// Sends the request to the supervisor, without blocking.
    ///
    /// # Errors
    /// The supervisor has exited, or does not read its requests.
    pub fn send(self, channel: &OwnedFd) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        send(channel.as_raw_fd(), encode(&self, &mut [0; MAX_BYTES]), flags)?;
        Ok(())
    }

    /// Receives the exporter's next request, without blocking. Returns `Ok(None)` for an invalid message.
    ///
    /// # Errors
    /// `WouldBlock` if the channel contains no message, and `UnexpectedEof` if the exporter has closed its end of the
    /// channel.
    pub fn receive(channel: &OwnedFd) -> io::Result<Option<Self>> {
        let mut bytes = [0; MAX_BYTES];
        match nix::sys::socket::recv(channel.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => Ok(decode(&bytes[..read])),
        }
    }
}

/// The reason why the supervisor could not connect to the node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum ConnectFailure {
    /// The connection to the node that the supervisor inherited has been used already, and no socket path is
    /// configured.
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum SupervisorReply {
    /// The supervisor has started a guard on a connection to the node.
    Connected {
        /// PID of the guard.
        guard: i32,
        /// PID of the process at the other end of the node's socket; 0 if that process is in another PID namespace.
        node: i32,
        /// Whether the guard uses the connection to the node that the supervisor inherited.
        inherited: bool,
    },
    /// The supervisor could not open the connection or could not start the guard.
    Failed(ConnectFailure),
    /// Resource usage of the node's process.
    Usage(PrivateUsage),
}

/// Resource usage of the node's process that only a process of the node's user may read, and only if Landlock does not
/// restrict the reading process. `None` for values that the supervisor could not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PrivateUsage {
    /// Number of file descriptors that the node's process has open.
    pub open_fds: Option<u64>,
    /// Bytes that the node's process has read from disk, and bytes that it has written to disk.
    pub io: Option<(u64, u64)>,
}

/// Number of descriptors that a [`SupervisorReply::Connected`] message passes: the socket for Cap'n Proto messages, the
/// socket for the guard's events, and the socket for the supervisor's notices about the guard.
pub const CONNECTION_FDS: usize = 3;

/// Maximum size in bytes of an encoded message between the exporter and the supervisor. The longest message has 33
/// bytes.
const MAX_BYTES: usize = 64;

fn encode<'a>(message: &impl Serialize, bytes: &'a mut [u8]) -> &'a [u8] {
    postcard::to_slice(message, bytes).expect("messages are shorter")
}

/// Decodes a message; `None` if the bytes are not a message.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (message, rest) = postcard::take_from_bytes(bytes).ok()?;
    rest.is_empty().then_some(message)
}

impl SupervisorReply {
    /// Sends the response to the exporter and passes the descriptors `fds`, without blocking.
    ///
    /// # Errors
    /// The exporter has exited, or does not read the responses.
    pub fn send(self, channel: &OwnedFd, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut bytes = [0; MAX_BYTES];
        let bytes = encode(&self, &mut bytes);
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?;
        Ok(())
    }

    /// Receives the supervisor's next response and the descriptors that the response passes, without blocking.
    ///
    /// # Errors
    /// `WouldBlock` if the channel contains no message, `UnexpectedEof` if the supervisor has exited, and `InvalidData`
    /// for an invalid message.
    pub fn receive(channel: &OwnedFd) -> io::Result<(Self, Vec<OwnedFd>)> {
        let mut bytes = [0; MAX_BYTES];
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
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let reply = decode(&bytes[..received]).ok_or(io::ErrorKind::InvalidData)?;
        Ok((reply, fds))
    }
}

/// Creates the two ends of the channel between the exporter and the supervisor: connected sockets that preserve message
/// boundaries.
///
/// # Errors
/// The sockets cannot be created, because file descriptors or memory are short.
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
            SupervisorRequest::Connect { trace_budget: Some(Duration::MAX) },
            SupervisorRequest::Notify(Notification::Ready),
            SupervisorRequest::Notify(Notification::Watchdog),
            SupervisorRequest::Notify(Notification::Stopping),
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
            (SupervisorReply::Usage(PrivateUsage { open_fds: None, io: Some((1 << 40, 0)) }), vec![]),
            (
                SupervisorReply::Usage(PrivateUsage {
                    open_fds: Some(u64::MAX),
                    io: Some((u64::MAX, u64::MAX)),
                }),
                vec![],
            ),
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
            assert_eq!(SupervisorRequest::receive(&supervisor).unwrap(), None, "{bytes:?}");
        }
        drop(exporter);
        assert_eq!(SupervisorRequest::receive(&supervisor).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
