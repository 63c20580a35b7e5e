//! A small HTTP client: JSON, the metadata of a file, and downloads that resume.

use std::{
    fs::File,
    io::{Read, Write},
    path::Path,
    time::Duration,
};

use serde::de::DeserializeOwned;
use ureq::{Body, http::Response};

use super::digest;
use crate::{
    Error, Result,
    interrupt::Interrupt,
    progress::{Bar, Progress},
};

/// An unreachable hub must not keep anybody waiting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A connection that says nothing for so long is given up, and resumed by a new one.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
const MAX_REDIRECTS: usize = 10;
/// Attempts in a row that bring not one byte.
const MAX_FUTILE_ATTEMPTS: u32 = 4;
const MAX_JSON_BYTES: u64 = 64 << 20;

/// A client for one endpoint; only requests below it carry the token.
pub(super) struct Client<'a> {
    agent: ureq::Agent,
    endpoint: String,
    token: Option<String>,
    interrupt: &'a Interrupt,
}

/// What a server says about a file, before it is fetched.
#[derive(Debug)]
pub(super) struct Remote {
    /// The size, in bytes.
    pub bytes: Option<u64>,
    /// The entity tag, without quotes: for large files on the hub, their SHA-256.
    pub etag: Option<String>,
}

/// What a download must come to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'w> {
    /// The size, in bytes.
    pub bytes: u64,
    /// The SHA-256 in lower-case hexadecimal, where it is known.
    pub sha256: Option<&'w str>,
}

impl<'a> Client<'a> {
    pub(super) fn new(endpoint: &str, token: Option<String>, interrupt: &'a Interrupt) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // Redirects are followed here: their headers matter, and the token must not leave.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(STALL_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            // Sizes and ranges count the bytes of the file, not of a compressed stream.
            .accept_encoding("identity")
            .build();
        Self { agent: config.into(), endpoint: endpoint.to_owned(), token, interrupt }
    }

    /// The JSON document at `url`.
    pub(super) fn json<T: DeserializeOwned>(&self, url: &str) -> Result<T> {
        let (response, _) = self.send(Request::Get { from: 0 }, url)?;
        let mut text = Vec::new();
        response
            .into_body()
            .into_reader()
            .take(MAX_JSON_BYTES)
            .read_to_end(&mut text)
            .map_err(|error| unreachable(url, error.into()))?;
        serde_json::from_slice(&text).map_err(|error| bad_answer(url, error.to_string()))
    }

    /// Size and entity tag of the file at `url`.
    pub(super) fn head(&self, url: &str) -> Result<Remote> {
        Ok(self.send(Request::Head, url)?.1)
    }

    /// Fetches `url` to the end of `partial`, which may hold the beginning already, and checks the
    /// whole. A connection that breaks is taken up again; a beginning that proves to be of another
    /// file is thrown away, once. `bar` moves by the bytes of the file.
    ///
    /// # Errors
    /// [`Error::Checksum`], after which `partial` is gone; any other error leaves it to be resumed.
    pub(super) fn download(&self, url: &str, partial: &Path, wanted: Wanted<'_>, bar: &Bar) -> Result<()> {
        let base = bar.position();
        loop {
            let resumed = partial.metadata().is_ok_and(|meta| meta.len() > 0);
            self.complete(url, partial, wanted.bytes, bar)?;
            let Some(expected) = wanted.sha256 else {
                return Ok(());
            };
            let hidden = Progress::hidden();
            let found = digest::sha256(partial, &hidden.bytes("", 0), self.interrupt)?;
            if found == expected {
                return Ok(());
            }
            std::fs::remove_file(partial).map_err(Error::io("remove", partial))?;
            if !resumed {
                return Err(Error::Checksum { path: shown(url), expected: expected.into(), found });
            }
            bar.set(base);
        }
    }

    /// Brings `partial` to its full size.
    fn complete(&self, url: &str, partial: &Path, expected: u64, bar: &Bar) -> Result<()> {
        let mut file =
            File::options().create(true).append(true).open(partial).map_err(Error::io("create", partial))?;
        let mut sink = Sink { partial, base: bar.position(), have: 0, expected, bar };
        sink.have = file.metadata().map_err(Error::io("read", partial))?.len();
        if sink.have > expected {
            sink.restart(&file)?;
        }
        bar.resume_at(sink.base + sink.have);
        let mut futile = 0;
        while sink.have < expected {
            let before = sink.have;
            let error = match self.attempt(url, &mut file, &mut sink) {
                Ok(()) if sink.have == expected => break,
                Ok(()) => {
                    let what = format!("it ended after {} of {} bytes", sink.have, expected);
                    bad_answer(url, what)
                }
                Err(error @ (Error::Unreachable { .. } | Error::Status { status: 500.., .. })) => error,
                Err(error) => return Err(error),
            };
            futile = if sink.have > before { 0 } else { futile + 1 };
            if futile >= MAX_FUTILE_ATTEMPTS {
                return Err(error);
            }
            for _ in 0..2 << futile {
                self.interrupt.check()?;
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        file.sync_all().map_err(Error::io("write", partial))
    }

    /// One connection, until it ends or breaks.
    fn attempt(&self, url: &str, file: &mut File, sink: &mut Sink<'_>) -> Result<()> {
        let (response, _) = match self.send(Request::Get { from: sink.have }, url) {
            Err(Error::Status { status: 416, .. }) if sink.have > 0 => {
                sink.restart(file)?;
                self.send(Request::Get { from: 0 }, url)?
            }
            other => other?,
        };
        let starts_at = match response.status().as_u16() {
            206 => {
                range_start(&response).ok_or_else(|| bad_answer(url, "a range without its start".into()))?
            }
            _ => 0,
        };
        if starts_at != sink.have {
            if starts_at != 0 {
                let what = format!("the range starts at {starts_at}, expected {}", sink.have);
                return Err(bad_answer(url, what));
            }
            sink.restart(file)?;
        }
        let mut body = response.into_body().into_reader();
        let mut buffer = vec![0; 1 << 17];
        loop {
            self.interrupt.check()?;
            let count = body.read(&mut buffer).map_err(|error| unreachable(url, error.into()))?;
            if count == 0 {
                return Ok(());
            }
            sink.take(file, &buffer[..count], url)?;
        }
    }

    /// Sends a request and follows its redirects. What the hub says of a large file stands in the
    /// headers of the redirect, not in those of the storage behind it.
    fn send(&self, request: Request, url: &str) -> Result<(Response<Body>, Remote)> {
        let mut url = url.to_owned();
        let mut remote = Remote { bytes: None, etag: None };
        for _ in 0..=MAX_REDIRECTS {
            self.interrupt.check()?;
            let mut builder = match request {
                Request::Head => self.agent.head(&url),
                Request::Get { .. } => self.agent.get(&url),
            };
            if let Request::Get { from } = request
                && from > 0
            {
                builder = builder.header("range", format!("bytes={from}-"));
            }
            if let Some(token) = self.token.as_ref().filter(|_| self.is_ours(&url)) {
                builder = builder.header("authorization", format!("Bearer {token}"));
            }
            let response = builder.call().map_err(|error| unreachable(&url, error))?;
            let status = response.status().as_u16();
            let is_redirect = matches!(status, 301 | 302 | 303 | 307 | 308);
            let linked_etag = header(&response, "x-linked-etag");
            let etag = linked_etag.or_else(|| header(&response, "etag").filter(|_| !is_redirect));
            remote.etag = remote.etag.or_else(|| etag.map(plain_etag));
            let linked_bytes = header(&response, "x-linked-size");
            let bytes = linked_bytes.or_else(|| header(&response, "content-length").filter(|_| !is_redirect));
            remote.bytes = remote.bytes.or_else(|| bytes?.parse().ok());
            match status {
                200 | 206 => return Ok((response, remote)),
                _ if is_redirect => {
                    let location = header(&response, "location")
                        .ok_or_else(|| bad_answer(&url, "a redirect without an address".into()))?;
                    url = follow(&url, location)?;
                }
                _ => {
                    return Err(Error::Status { url: shown(&url), status });
                }
            }
        }
        Err(bad_answer(&url, format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn is_ours(&self, url: &str) -> bool {
        url.strip_prefix(&self.endpoint).is_some_and(|rest| rest.starts_with('/'))
    }
}

#[derive(Clone, Copy)]
enum Request {
    Head,
    Get { from: u64 },
}

/// How far a partial file is.
struct Sink<'a> {
    partial: &'a Path,
    /// Where the bar stood before this file.
    base: u64,
    have: u64,
    expected: u64,
    bar: &'a Bar,
}

impl Sink<'_> {
    fn take(&mut self, file: &mut File, bytes: &[u8], url: &str) -> Result<()> {
        let after = self.have + bytes.len() as u64;
        if after > self.expected {
            let expected = self.expected;
            self.restart(file)?;
            return Err(bad_answer(url, format!("it holds more than the {expected} bytes announced")));
        }
        file.write_all(bytes).map_err(Error::io("write", self.partial))?;
        self.have = after;
        self.bar.set(self.base + self.have);
        Ok(())
    }

    fn restart(&mut self, file: &File) -> Result<()> {
        file.set_len(0).map_err(Error::io("write", self.partial))?;
        self.have = 0;
        self.bar.set(self.base);
        Ok(())
    }
}

fn header<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}

fn range_start(response: &Response<Body>) -> Option<u64> {
    let range = header(response, "content-range")?.strip_prefix("bytes ")?;
    range.split_once('-')?.0.parse().ok()
}

fn plain_etag(etag: &str) -> String {
    etag.trim_start_matches("W/").trim_matches('"').to_owned()
}

/// The address that a redirect leads to: absolute, or a path on the same host.
fn follow(url: &str, location: &str) -> Result<String> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(bad_answer(url, "not an address".into()));
    };
    if location.starts_with('/') && !location.starts_with("//") {
        let host = rest.split('/').next().unwrap_or_default();
        return Ok(format!("{scheme}://{host}{location}"));
    }
    let is_safe = location.starts_with("https://") || scheme == "http" && location.starts_with("http://");
    if is_safe {
        Ok(location.to_owned())
    } else {
        Err(bad_answer(url, format!("a redirect to {location:?}")))
    }
}

/// An address as messages show it: signed addresses carry secrets in their query.
fn shown(url: &str) -> String {
    url.split('?').next().unwrap_or(url).to_owned()
}

/// Which file of a server that cannot be reached is of no interest.
fn unreachable(url: &str, source: ureq::Error) -> Error {
    let origin = url.splitn(4, '/').take(3).collect::<Vec<_>>().join("/");
    Error::Unreachable { url: origin, source: Box::new(source) }
}

fn bad_answer(url: &str, what: String) -> Error {
    Error::BadAnswer { url: shown(url), what }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn redirects_stay_on_http_s_and_never_step_down() {
        let from = "https://hub.example/a/b?x";
        assert_eq!(follow(from, "/c").unwrap(), "https://hub.example/c");
        assert_eq!(follow(from, "https://cdn.example/d").unwrap(), "https://cdn.example/d");
        for hostile in ["http://cdn.example/d", "file:///etc/passwd", "//cdn.example", "d"] {
            assert!(follow(from, hostile).is_err(), "{hostile}");
        }
    }

    #[test]
    fn the_token_goes_to_the_endpoint_only() {
        let interrupt = Interrupt::new();
        let client = Client::new("https://hub.example", Some("secret".into()), &interrupt);
        assert!(client.is_ours("https://hub.example/api"));
        for other in ["https://hub.example.evil/api", "http://hub.example/api", "https://cdn.example/"] {
            assert!(!client.is_ours(other), "{other}");
        }
    }

    #[test]
    fn secrets_in_queries_are_not_shown() {
        assert_eq!(shown("https://cdn/x?sig=secret"), "https://cdn/x");
        let error = unreachable("https://cdn/x?sig=secret", ureq::Error::HostNotFound);
        assert_eq!(error.to_string(), "cannot reach `https://cdn`");
    }
}
