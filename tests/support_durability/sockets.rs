//! What left through sockets and when, read from a trace made with `-f -y -xx`.

use std::collections::HashMap;

use super::call_name;

/// Calls on sockets. A `write` to one is none of an answer.
pub const CALLS: [&str; 4] = ["recvfrom", "writev", "sendto", "sendmsg"];
/// What a TLS record of one frame has beside what the frame carries.
const FRAME_BYTES: u64 = 5 + 1 + 16 + 9;
/// An answer that has begun shows the client at least this: the headers carry the id of the request, a UUID as text that no
/// table has, in at least 5 bits a character. Two window updates in a record, the acknowledgement of settings beside one,
/// or a ping, are shorter.
const ANSWER_BYTES: u64 = FRAME_BYTES + 36 * 5 / 8;
/// What a server sends by itself at first: its flight of the TLS handshake, and its HTTP/2 settings.
const GREETINGS: usize = 2;
/// Requests of the test are longer than this, client hellos too.
const REQUEST_BYTES: u64 = 150;

/// One connection of a client that makes one request at a time.
#[derive(Clone, Debug, Default)]
pub struct Connection {
    socket: String,
    sent: usize,
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
            continue;
        }
        connection.sent += 1;
        if connection.sent <= GREETINGS {
            // The first request may be there before the settings leave.
            connection.received *= u64::from(connection.sent > 1);
        } else if call.bytes >= ANSWER_BYTES && connection.received >= REQUEST_BYTES {
            connection.answers.push((connection.began, call.start));
            connection.received = 0;
        }
    }
    // The runtime's own pair of sockets is none.
    connections.retain(|connection| !connection.answers.is_empty());
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Headers that leave by themselves, before all else of an answer, are its beginning; a window update is none.
    #[test]
    fn an_answer_begins_with_its_headers_however_few_they_are() {
        let (of_two_windows, of_headers) = (22 + 13 + 13, 22 + 9 + 1 + 1 + 25);
        let trace = |before_sync: u64| {
            format!(
                "7 recvfrom(9<s>, \"\", 9, 0, NULL, NULL) = 247\n\
                 7 sendto(9<s>, \"\", 9, 0, NULL, 0) = 859\n\
                 7 recvfrom(9<s>, \"\", 9, 0, NULL, NULL) = 716\n\
                 7 sendto(9<s>, \"\", 9, 0, NULL, 0) = 55\n\
                 7 sendto(9<s>, \"\", 9, 0, NULL, 0) = 44\n\
                 7 recvfrom(9<s>, \"\", 9, 0, NULL, NULL) = 381\n\
                 7 writev(9<s>, [], 2) = {before_sync}\n\
                 8 fdatasync(5</l>) = 0\n\
                 7 writev(9<s>, [], 2) = 2163\n\
                 7 writev(9<s>, [], 2) = 32\n"
            )
        };
        for (before_sync, answered) in [(of_two_windows, 8), (of_headers, 6), (2163, 6)] {
            let trace = trace(before_sync);
            let [connection] = &connections(&trace)[..] else { panic!("one connection") };
            assert_eq!(connection.answers, [(2, answered)], "{before_sync}");
        }
    }
}
