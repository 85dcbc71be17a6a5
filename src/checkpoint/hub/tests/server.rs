//! A hub on this machine that answers as well or as badly as it is told: for the tests of the hub's client, and in
//! `tests/hub_first.rs` for those of the program.
#![allow(dead_code)] // The program's tests use a part of it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a request asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// What the model has.
    Api,
    /// What a file is: its first byte is asked for.
    Meta,
    /// A file's content, of the hub itself.
    Get,
    /// The content of a large file, of the server that stores it.
    Large,
}

/// How a request is answered.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Well,
    Status(u16, &'static str),
    /// So many bytes of what was announced, then the end.
    Truncate(usize),
    /// So many bytes, announced as all.
    Short(usize),
    /// More bytes than the range has.
    Long,
    Close,
    /// So many bytes, then nothing for a while.
    Stall(usize, Duration),
    StallHead(Duration),
    /// A piece at a time.
    Slow(usize, Duration),
    Flip,
    Zero,
    /// All of it, whatever range was asked for.
    NoRange,
    Page,
    Redirect(&'static str),
    NoLocation,
    /// Another header, or none of that name.
    Header(&'static str, &'static str),
    Gzip,
    Chunked,
    Body(String),
    /// The part that was asked for, said to be the whole file, and packed.
    GzipOfPart,
    Raw(&'static str),
}

/// A request, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) phase: Phase,
    pub(crate) file: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) acts: HashMap<(Phase, String), VecDeque<Act>>,
    pub(crate) asked: Vec<Asked>,
    /// The token it wants.
    pub(crate) token: Option<&'static str>,
    pub(crate) commit: String,
    /// Names that it lists beside those of its files.
    pub(crate) more_names: Vec<String>,
    /// Where large files are, where not here.
    pub(crate) store: Option<String>,
}

/// A hub with one model, `org/model`.
pub(crate) struct Hub {
    pub(crate) endpoint: String,
    pub(crate) state: Arc<Mutex<State>>,
}

impl Hub {
    pub(crate) fn with(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
        Self::start(State { files, commit: COMMIT.to_owned(), ..State::default() })
    }

    fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(state));
        let shared = state.clone();
        // Ends with the process: it holds nothing but its socket.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || answer(&stream, &shared));
            }
        });
        Self { endpoint, state }
    }

    /// Answers of one kind from now on, one after the other; the last one stays.
    pub(crate) fn acts(&self, phase: Phase, file: &str, acts: &[Act]) {
        self.state.lock().unwrap().acts.insert((phase, file.to_owned()), acts.iter().cloned().collect());
    }

    /// What was asked since the last time.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state.lock().unwrap().asked)
    }

    /// Names of the files whose content was asked for since the last time.
    pub(crate) fn fetched(&self) -> Vec<String> {
        let contents = |asked: &Asked| matches!(asked.phase, Phase::Get | Phase::Large);
        let mut names: Vec<String> = self.asked().into_iter().filter(contents).map(|asked| asked.file).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

fn is_large(name: &str) -> bool {
    [".safetensors", ".bin", ".gguf", ".model"].iter().any(|end| name.ends_with(end))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The ETag of a file, as the hub gives it.
pub(crate) fn etag(name: &str, bytes: &[u8]) -> String {
    match is_large(name) {
        true => hex(&Sha256::digest(bytes)),
        false => hex(&Sha1::new_with_prefix(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize()),
    }
}

fn answer(stream: &TcpStream, shared: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(n) if n > 0 && !line.trim().is_empty() => lines.push(line.trim().to_owned()),
            _ => break,
        }
    }
    let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)).map(str::to_owned) else { return };
    let header = |name: &str| {
        let mut headers = lines.iter().filter_map(|line| line.split_once(": "));
        headers.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let range = header("range");
    let mut state = shared.lock().unwrap();
    let resolve = format!("/org/model/resolve/{}/", state.commit);
    let (phase, file) = if path.starts_with("/api/models/org/model/revision/") {
        (Phase::Api, String::new())
    } else if let Some(file) = path.strip_prefix(&resolve) {
        let file = file.split('?').next().unwrap().to_owned();
        (if range.as_deref() == Some("bytes=0-0") { Phase::Meta } else { Phase::Get }, file)
    } else if let Some(file) = path.strip_prefix("/store/") {
        (Phase::Large, file.split('?').next().unwrap().to_owned())
    } else {
        drop(state);
        return write(stream, "404 Not Found", &[], b"");
    };
    let file = file.replace("%20", " ");
    let token = header("authorization");
    state.asked.push(Asked { phase, file: file.clone(), range: range.clone(), token: token.clone() });
    let acts = [(phase, file.clone()), (phase, "*".to_owned())].into_iter().find(|key| state.acts.contains_key(key));
    let act = acts.and_then(|key| {
        let queue = state.acts.get_mut(&key)?;
        if queue.len() > 1 { queue.pop_front() } else { queue.front().cloned() }
    });
    let act = act.unwrap_or(Act::Well);
    if phase != Phase::Large && state.token.is_some_and(|wanted| token != Some(format!("Bearer {wanted}"))) {
        drop(state);
        return write(stream, "401 Unauthorized", &[], b"");
    }
    let (commit, store) = (state.commit.clone(), state.store.clone());
    let revisions = ["main", commit.as_str()];
    let (bytes, headers) = match phase {
        Phase::Api if !revisions.iter().any(|revision| path.ends_with(&format!("/{revision}"))) => {
            drop(state);
            return write(stream, "404 Not Found", &[("X-Error-Code", "RevisionNotFound".to_owned())], b"");
        }
        Phase::Api => {
            let names = state.files.keys().chain(&state.more_names);
            let siblings: Vec<_> = names.map(|name| serde_json::json!({"rfilename": name})).collect();
            let info = serde_json::json!({"sha": commit, "siblings": siblings});
            (info.to_string().into_bytes(), vec![("Content-Type", "application/json".to_owned())])
        }
        _ => {
            let Some(bytes) = state.files.get(&file).cloned() else {
                drop(state);
                return write(stream, "404 Not Found", &[("X-Error-Code", "EntryNotFound".to_owned())], b"");
            };
            let mark = format!("\"{}\"", etag(&file, &bytes));
            let headers = match (phase, is_large(&file)) {
                (Phase::Large, _) => vec![("ETag", "\"of-the-store\"".to_owned())],
                (_, false) => vec![("ETag", mark), ("X-Repo-Commit", commit)],
                (_, true) => {
                    let host = store.unwrap_or_else(|| format!("http://{}", header("host").unwrap()));
                    vec![
                        ("X-Linked-ETag", mark),
                        ("X-Linked-Size", bytes.len().to_string()),
                        ("X-Repo-Commit", commit),
                        ("Location", format!("{host}/store/{file}?sig=abc")),
                    ]
                }
            };
            (bytes, headers)
        }
    };
    drop(state);
    perform(stream, &act, &bytes, headers, range.as_deref(), &path);
    let _ = stream.shutdown(Shutdown::Both);
}

fn perform(
    stream: &TcpStream,
    act: &Act,
    bytes: &[u8],
    mut headers: Vec<(&'static str, String)>,
    range: Option<&str>,
    path: &str,
) {
    let total = bytes.len();
    let asked = range.and_then(|range| range.strip_prefix("bytes=")).and_then(|range| range.split_once('-'));
    let (from, to) = asked.map_or((0, total), |(from, to)| {
        (from.parse().unwrap(), to.parse().map_or(total, |to: usize| (to + 1).min(total)))
    });
    let ranged = |headers: &mut Vec<(&'static str, String)>| {
        headers.push(("Content-Range", format!("bytes {from}-{}/{total}", to.max(1) - 1)));
    };
    let partial = "206 Partial Content";
    match act {
        Act::Well | Act::Flip | Act::Zero | Act::Header(..) => {
            let mut bytes = bytes.to_vec();
            match act {
                Act::Flip => bytes[total / 2] ^= 0xff,
                Act::Zero => bytes.fill(0),
                Act::Header(name, value) => {
                    headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
                    if !value.is_empty() {
                        headers.push((*name, (*value).to_owned()));
                    }
                }
                _ => {}
            }
            if headers.iter().any(|(name, _)| *name == "Location") {
                return write(stream, "302 Found", &headers, b"Found");
            }
            match asked {
                None => write(stream, "200 OK", &headers, &bytes),
                Some(_) if from >= total => {
                    write(stream, "416 Range", &[("Content-Range", format!("bytes */{total}"))], b"");
                }
                Some(_) => {
                    ranged(&mut headers);
                    write(stream, partial, &headers, &bytes[from..to]);
                }
            }
        }
        Act::Status(status, extra) => {
            let extra: Vec<_> =
                extra.split_once(": ").map(|(name, value)| (name, value.to_owned())).into_iter().collect();
            write(stream, &format!("{status} So"), &extra, b"");
        }
        Act::Truncate(n) | Act::Stall(n, _) => {
            ranged(&mut headers);
            headers.push(("Content-Length", (to - from).to_string()));
            write_part(stream, partial, &headers, &bytes[from..to][..(*n).min(to - from)]);
            if let Act::Stall(_, time) = act {
                std::thread::sleep(*time);
            }
        }
        Act::Short(n) => {
            ranged(&mut headers);
            write(stream, partial, &headers, &bytes[from..to][..(*n).min(to - from)]);
        }
        Act::Long => {
            ranged(&mut headers);
            write(stream, partial, &headers, &[&bytes[from..to], b"more"].concat());
        }
        Act::Close => {}
        Act::StallHead(time) => std::thread::sleep(*time),
        Act::Slow(step, time) => {
            headers.push(("Content-Length", (to - from).to_string()));
            ranged(&mut headers);
            write_part(stream, partial, &headers, b"");
            for piece in bytes[from..to].chunks(*step) {
                let mut out = stream;
                let _ = out.write_all(piece).and_then(|()| out.flush());
                std::thread::sleep(*time);
            }
        }
        Act::NoRange => write(stream, "200 OK", &headers, bytes),
        Act::Page => write(
            stream,
            "200 OK",
            &[("Content-Type", "text/html".to_owned())],
            b"<!DOCTYPE html><html><body>Sign in</body></html>",
        ),
        Act::Redirect(to) => {
            headers.retain(|(name, _)| *name != "Location" && !name.starts_with("X-Linked"));
            headers.push(("Location", to.replace("SELF", path)));
            write(stream, "302 Found", &headers, b"");
        }
        Act::NoLocation => {
            headers.retain(|(name, _)| *name != "Location");
            write(stream, "302 Found", &headers, b"");
        }
        Act::Gzip | Act::GzipOfPart => {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            let part = if let Act::GzipOfPart = act { &bytes[from..to] } else { bytes };
            packed.write_all(part).unwrap();
            headers.push(("Content-Encoding", "gzip".to_owned()));
            write(stream, "200 OK", &headers, &packed.finish().unwrap());
        }
        Act::Chunked => {
            headers.push(("Transfer-Encoding", "chunked".to_owned()));
            let body = [format!("{total:x}\r\n").as_bytes(), bytes, b"\r\n0\r\n\r\n"].concat();
            write_part(stream, "200 OK", &headers, &body);
        }
        Act::Body(text) => write(stream, "200 OK", &headers, text.as_bytes()),
        Act::Raw(text) => {
            let mut out = stream;
            let _ = out.write_all(text.as_bytes());
        }
    }
}

fn write(stream: &TcpStream, status: &str, headers: &[(&str, String)], body: &[u8]) {
    let mut headers = headers.to_vec();
    headers.push(("Content-Length", body.len().to_string()));
    write_part(stream, status, &headers, body);
}

fn write_part(stream: &TcpStream, status: &str, headers: &[(&str, String)], body: &[u8]) {
    let mut head = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut out = stream;
    let _ = out.write_all(format!("{head}\r\n").as_bytes()).and_then(|()| out.write_all(body));
    let _ = out.flush();
}
