//! Telling systemd where the service stands (sd_notify(3)).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The variable in which systemd names the socket that it listens on. Nothing that the service starts inherits it: the spawner
/// and jobs have environments of their own.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// The service accepts requests.
pub(crate) fn ready(status: &str) {
    notify(&format!("READY=1\nSTATUS={status}"));
}

/// The service is ending; jobs go on.
pub(crate) fn stopping() {
    notify("STOPPING=1\nSTATUS=stopping; jobs that run go on");
}

fn notify(state: &str) {
    let Some(socket) = std::env::var_os(SOCKET_VARIABLE).filter(|socket| !socket.is_empty()) else { return };
    // Whoever asked to be told and cannot be is in trouble; the service is not.
    if let Err(error) = send(&socket, state) {
        tracing::warn!(socket = %socket.display(), %error, "systemd cannot be told");
    }
}

fn send(socket: &OsStr, state: &str) -> io::Result<()> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // It must not wait: a full socket is the reader's trouble.
    sender.set_nonblocking(true)?;
    sender.send_to_addr(state.as_bytes(), &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_sent_to_a_socket_by_path_and_by_abstract_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("notify");
        let name = format!("taxiway-test-{}", std::process::id());
        let by_path = UnixDatagram::bind(&path).expect("a socket");
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let by_name = UnixDatagram::bind_addr(&address).expect("a socket");
        for (receiver, socket) in [(by_path, path.into_os_string()), (by_name, format!("@{name}").into())] {
            send(&socket, "READY=1\nSTATUS=here").expect("somebody listens");
            let mut buffer = [0; 64];
            let read = receiver.recv(&mut buffer).expect("a datagram");
            assert_eq!(&buffer[..read], b"READY=1\nSTATUS=here");
        }
    }

    #[test]
    fn a_socket_that_is_not_there_is_an_error() {
        assert!(send(OsStr::new("/no/such/socket"), "READY=1").is_err());
    }
}
