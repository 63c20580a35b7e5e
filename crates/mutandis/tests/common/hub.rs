//! A hub on 127.0.0.1: the API, small files by themselves, large files behind a redirect to a
//! second server, ranges, and the faults that a network has.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use super::sha256;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[derive(Clone)]
pub struct RemoteFile {
    pub name: String,
    pub bytes: Vec<u8>,
    /// What the hub claims; large files: the SHA-256.
    pub etag: String,
    pub is_large: bool,
}

#[derive(Default)]
pub struct State {
    pub files: Vec<RemoteFile>,
    /// Each request for content: method, path, range, authorization.
    pub log: Vec<Request>,
    /// Closes the next download of a large file after so many bytes.
    pub cut_after: Option<usize>,
    /// Pause after each 8 KiB of a large file.
    pub pause: Duration,
    /// The token that every request to the hub must carry.
    pub token: Option<String>,
    pub commit: String,
}

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
}

pub struct Hub {
    pub endpoint: String,
    pub storage: String,
    pub state: Arc<Mutex<State>>,
}

impl Hub {
    /// A hub whose every repository holds these files: (name, content, is large).
    pub fn new(files: &[(&str, &[u8], bool)]) -> Self {
        let files = files.iter().map(|&(name, bytes, is_large)| {
            // Git's tags have 40 digits, and are no SHA-256.
            let etag = if is_large { sha256(bytes) } else { sha256(bytes)[..40].to_owned() };
            RemoteFile { name: name.into(), bytes: bytes.into(), etag, is_large }
        });
        let state = State { files: files.collect(), commit: COMMIT.into(), ..State::default() };
        let state = Arc::new(Mutex::new(state));
        let [hub, storage] = [0, 0].map(|port| TcpListener::bind(("127.0.0.1", port)).unwrap());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let [endpoint, storage_url] = [address(&hub), address(&storage)];
        for listener in [hub, storage] {
            let (state, storage_url) = (state.clone(), storage_url.clone());
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, storage_url) = (state.clone(), storage_url.clone());
                    // A client that goes away in the middle is one of the things tested.
                    thread::spawn(move || drop(serve(stream, &state, &storage_url)));
                }
            });
        }
        Self { endpoint, storage: storage_url, state }
    }

    pub fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
    }

    pub fn log(&self) -> Vec<Request> {
        self.state.lock().unwrap().log.clone()
    }

    /// Paths of the contents fetched so far, without HEAD requests and the API.
    pub fn fetched(&self) -> Vec<String> {
        let gets = self.log().into_iter().filter(|r| r.method == "GET" && !r.path.starts_with("/api/"));
        let mut names: Vec<String> =
            gets.filter_map(|r| r.path.rsplit_once('/').map(|(_, name)| name.to_owned())).collect();
        names.sort();
        names.dedup();
        names
    }
}

fn serve(stream: TcpStream, state: &Mutex<State>, storage: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) =
        (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut request = Request { method, path, range: None, authorization: None };
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => request.range = Some(value.to_owned()),
            "authorization" => request.authorization = Some(value.to_owned()),
            _ => {}
        }
    }
    state.lock().unwrap().log.push(request.clone());
    answer(stream, &request, state, storage)
}

fn answer(mut out: TcpStream, request: &Request, state: &Mutex<State>, storage: &str) -> std::io::Result<()> {
    let (files, commit, token) = {
        let state = state.lock().unwrap();
        (state.files.clone(), state.commit.clone(), state.token.clone())
    };
    let is_storage = request.path.starts_with("/storage/");
    if !is_storage && token.is_some() && request.authorization != token.map(|token| format!("Bearer {token}"))
    {
        return status(&mut out, "401 Unauthorized");
    }
    if let Some(rest) = request.path.strip_prefix("/api/models/org/") {
        if !rest.ends_with("/revision/main") {
            return status(&mut out, "404 Not Found");
        }
        let siblings: Vec<_> =
            files.iter().map(|file| serde_json::json!({ "rfilename": file.name })).collect();
        let text = serde_json::json!({ "sha": commit, "siblings": siblings }).to_string();
        return write!(
            out,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
    }
    let name = |path: &str| match path.strip_prefix("/storage/") {
        Some(name) => name.to_owned(),
        None => path.splitn(6, '/').nth(5).unwrap_or_default().to_owned(),
    };
    let Some(file) = files.iter().find(|file| file.name == name(&request.path)) else {
        return status(&mut out, "404 Not Found");
    };
    if file.is_large && !is_storage {
        return write!(
            out,
            "HTTP/1.1 302 Found\r\nLocation: {storage}/storage/{}\r\nX-Linked-Etag: \"{}\"\r\nX-Linked-Size: {}\r\n\
             ETag: \"of-the-redirect\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            file.name,
            file.etag,
            file.bytes.len()
        );
    }
    let from =
        request.range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let body = &file.bytes[from.unwrap_or(0).min(file.bytes.len())..];
    match from {
        Some(from) => write!(
            out,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {from}-{}/{}\r\n",
            file.bytes.len().saturating_sub(1),
            file.bytes.len()
        )?,
        None => write!(out, "HTTP/1.1 200 OK\r\n")?,
    }
    let etag = if is_storage { "of-the-storage" } else { &file.etag };
    write!(out, "ETag: W/\"{etag}\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    let (pause, cut) = {
        let mut state = state.lock().unwrap();
        (state.pause, if is_storage { state.cut_after.take() } else { None })
    };
    for chunk in body[..cut.unwrap_or(body.len()).min(body.len())].chunks(8 << 10) {
        out.write_all(chunk)?;
        if is_storage {
            thread::sleep(pause);
        }
    }
    Ok(())
}

fn status(out: &mut TcpStream, status: &str) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}
