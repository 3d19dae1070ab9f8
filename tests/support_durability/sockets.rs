//! What left through sockets and when, read from a trace made with `-f -y -xx`.

use std::collections::HashMap;

use super::call_name;

/// Calls on sockets. A `write` to one is none of an answer.
pub const CALLS: [&str; 4] = ["recvfrom", "writev", "sendto", "sendmsg"];
/// TLS tickets, HTTP/2 settings, window updates, pings and trailers are shorter than this; answers are longer.
const ANSWER_BYTES: u64 = 100;
/// Requests of the test are longer than this, client hellos too.
const REQUEST_BYTES: u64 = 150;

/// One connection of a client that makes one request at a time.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    socket: String,
    received: u64,
    began: usize,
    /// When the first byte of a request had come, and when the first byte of its answer began to leave.
    pub answers: Vec<(usize, usize)>,
}

/// One call on a socket.
struct SocketCall<'a> {
    socket: &'a str,
    sends: bool,
    bytes: u64,
    start: usize,
    done: usize,
}

/// Returns the connections in the order in which they were opened, with the answers on each.
pub fn connections(trace: &str) -> Vec<Connection> {
    let mut connections: Vec<Connection> = vec![];
    for call in calls(trace) {
        let known = connections.iter_mut().position(|known| known.socket == call.socket);
        let index = known.unwrap_or_else(|| {
            let socket = call.socket.to_owned();
            connections.push(Connection { socket, ..Connection::default() });
            connections.len() - 1
        });
        let connection = &mut connections[index];
        if !call.sends {
            if connection.received == 0 {
                connection.began = call.done;
            }
            connection.received += call.bytes;
        } else if call.bytes >= ANSWER_BYTES && connection.received >= REQUEST_BYTES {
            connection.answers.push((connection.began, call.start));
            connection.received = 0;
        }
    }
    // The runtime's own pair of sockets is none; what the others answered first is the TLS handshake.
    connections.retain(|connection| !connection.answers.is_empty());
    for connection in &mut connections {
        connection.answers.remove(0);
    }
    connections
}

fn calls(trace: &str) -> Vec<SocketCall<'_>> {
    let mut unfinished: HashMap<(&str, &str), (usize, &str)> = HashMap::new();
    let mut calls = vec![];
    for (tick, line) in trace.lines().enumerate() {
        let Some(name) = name(line) else { continue };
        let thread = line.split(' ').next().unwrap();
        let (start, socket) = if line.contains("<... ") {
            let Some(begun) = unfinished.remove(&(thread, name)) else { continue };
            begun
        } else {
            (tick, line.split_once('(').unwrap().1.split_once('>').unwrap().0)
        };
        if line.ends_with("<unfinished ...>") {
            unfinished.insert((thread, name), (start, socket));
            continue;
        }
        let result = line.rsplit_once(" = ").unwrap().1.split(' ').next().unwrap();
        let Ok(bytes) = result.parse() else { continue };
        calls.push(SocketCall { socket, sends: name != "recvfrom", bytes, start, done: tick });
    }
    // An answer counts from its beginning, a request from when it was read.
    calls.sort_by_key(|call| if call.sends { call.start } else { call.done });
    calls
}

fn name(line: &str) -> Option<&'static str> {
    let name = call_name(line)?;
    CALLS.into_iter().find(|call| *call == name)
}
