//! Listening sockets: bound early, so that a wrong address is told at once; listening when there is somebody to answer.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

use super::error::StartError;
use crate::transport::limits::LISTEN_BACKLOG;

pub(super) fn bind(address: SocketAddr) -> Result<TcpSocket, StartError> {
    let failed = |cause| StartError::Listen { address, cause };
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(failed)?;
    // A restart must not wait for the sockets of the process before.
    socket.set_reuseaddr(true).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    Ok(socket)
}

pub(super) fn listen(socket: TcpSocket) -> Result<TcpListener, StartError> {
    let address = address(socket.local_addr())?;
    socket.listen(LISTEN_BACKLOG).map_err(|cause| StartError::Listen { address, cause })
}

pub(super) fn address(told: io::Result<SocketAddr>) -> Result<SocketAddr, StartError> {
    told.map_err(StartError::system("ask a socket for its address"))
}
