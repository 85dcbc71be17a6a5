//! Requests to a hub: redirects, the token, timeouts and retries.
//!
//! This module follows redirects itself, rather than leaving them to ureq, because the token may only go to the hub
//! itself: to the scheme, host and port of its address. Reference: huggingface_hub `utils/_http.py`.

use std::io::Read;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ureq::Agent;
use ureq::http::Response;

use super::address::{Origin, joined, shown};
use super::fault::{Again, Fault};
use super::{Event, HubSettings};
use crate::error::Finding;

/// The largest number of redirects that are followed.
const MAX_REDIRECTS: usize = 10;
/// The longest wait that a hub may ask for. If it asks for more, the request fails.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// A client for one hub.
pub(super) struct Client<'a> {
    agent: Agent,
    home: Origin,
    settings: &'a HubSettings,
    tell: &'a dyn Fn(Event<'_>),
}

/// The kind of a request. It decides the timeouts, and which redirects are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    /// Which files a model has.
    Model,
    /// The facts about a file, such as its hash and length.
    File,
    /// A file's content.
    Content,
}

/// An answer of status 200 or 206, or a redirect with the facts about a file.
pub(super) struct Answer {
    /// The address that it came from, after redirects.
    pub(super) address: String,
    response: Response<ureq::Body>,
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    pub(super) fn is_redirect(&self) -> bool {
        matches!(self.status(), 301 | 302 | 303 | 307 | 308)
    }

    /// Returns whether it is a web page.
    pub(super) fn is_page(&self) -> bool {
        self.header("content-type").is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/html"))
    }

    /// Returns the position of the body's first byte in the file, and the file's length, from `Content-Range`.
    pub(super) fn range(&self) -> Option<(u64, Option<u64>)> {
        let (range, total) = self.header("content-range")?.trim().strip_prefix("bytes")?.trim().split_once('/')?;
        let start = range.split('-').next()?.trim().parse().ok()?;
        Some((start, total.trim().parse().ok()))
    }

    pub(super) fn into_body(self) -> (String, Box<dyn Read>) {
        let gzip = self.header("content-encoding").is_some_and(|kind| kind.trim().eq_ignore_ascii_case("gzip"));
        let reader = self.response.into_body().into_reader();
        // No request asks for compression, but some proxies use it anyway.
        let reader: Box<dyn Read> =
            if gzip { Box::new(flate2::read::MultiGzDecoder::new(reader)) } else { Box::new(reader) };
        (self.address, reader)
    }

    /// Returns whether the bytes are the file's own, neither compressed nor otherwise changed on the way.
    pub(super) fn is_plain(&self) -> bool {
        self.header("content-encoding").is_none_or(|kind| kind.trim().eq_ignore_ascii_case("identity"))
    }
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a HubSettings, tell: &'a dyn Fn(Event<'_>)) -> crate::error::Result<Self> {
        let Some(home) = Origin::of(&settings.endpoint) else {
            let finding = Finding::new("the hub's address", "").expected("an address of http or https");
            return Err(finding.found(format_args!("{:?}", settings.endpoint)).mismatch());
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("atombank/", env!("CARGO_PKG_VERSION")))
            // A compressed answer has no length to resume by.
            .accept_encoding("identity")
            .build();
        Ok(Self { agent: config.into(), home, settings, tell })
    }

    /// Sends the user a note while the work continues.
    pub(super) fn note(&self, text: &str) {
        (self.tell)(Event::Note(text));
    }

    pub(super) fn tell(&self, event: Event<'_>) {
        (self.tell)(event);
    }

    /// Sends one request, and follows its redirects.
    pub(super) fn ask(&self, question: Question, address: &str, range: Option<&str>) -> Result<Answer, Fault> {
        let mut address = address.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.ask_here(question, &address, range)?;
            if !answer.is_redirect() {
                return match answer.status() {
                    200 | 206 => Ok(answer),
                    status => Err(refusal(&answer, status)),
                };
            }
            let Some(location) = answer.header("location") else {
                return Err(Fault::odd(
                    &address,
                    "a redirect's Location",
                    format_args!("status {} without one", answer.status()),
                ));
            };
            let next = joined(&address, location).ok_or_else(|| {
                Fault::odd(&address, "a redirect to an address of http or https", format_args!("{location:?}"))
            })?;
            let (here, there) = (Origin::of(&address), Origin::of(&next));
            // The redirect that leads to another server for a large file has the hub's facts about that file.
            if question == Question::File && says_what_it_is(&answer, here == there) {
                return Ok(answer);
            }
            let scheme = |origin: &Option<Origin>| origin.as_ref().map(|origin| origin.scheme == "https");
            // Content is checked against its hash, but the answer that gives the hash has to come over a secure
            // connection.
            if question != Question::Content && scheme(&here) > scheme(&there) {
                return Err(Fault::odd(&address, "a redirect to https", shown(&next)));
            }
            address = next;
        }
        Err(Fault::odd(&address, format_args!("an answer within {MAX_REDIRECTS} redirects"), "one more"))
    }

    fn ask_here(&self, question: Question, address: &str, range: Option<&str>) -> Result<Answer, Fault> {
        let timeout = match question {
            Question::Content => self.settings.download_timeout,
            Question::Model | Question::File => self.settings.etag_timeout,
        };
        let request = self.agent.get(address).config();
        let request = request
            .timeout_resolve(Some(timeout))
            .timeout_connect(Some(timeout))
            .timeout_send_request(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_per_read(Some(timeout));
        let mut request = request.build();
        if let Some(range) = range {
            request = request.header("Range", range);
        }
        let token = self.settings.token.as_ref().filter(|_| Origin::of(address).as_ref() == Some(&self.home));
        if let Some(token) = token {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        match request.call() {
            Ok(response) => Ok(Answer { address: address.to_owned(), response }),
            Err(error) => Err(broken(address, error, timeout)),
        }
    }

    /// Repeats `work`, with growing pauses, while a retry may help. `what` names the work in notes.
    pub(super) fn with_tries<T>(&self, what: &str, mut work: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
        let mut tries = Tries::default();
        loop {
            match work() {
                Ok(done) => return Ok(done),
                Err(fault) => self.pause(what, fault, &mut tries)?,
            }
        }
    }

    /// Waits before a retry, or returns the fault if no retries are left.
    pub(super) fn pause(&self, what: &str, fault: Fault, tries: &mut Tries) -> Result<(), Fault> {
        tries.done += 1;
        if tries.done > fault.tries() {
            return Err(fault);
        }
        let growing = self.settings.pause * 2u32.pow(tries.done.min(4) - 1);
        let pause = fault.wait().map_or(growing, |wait| wait.max(growing));
        if pause > MAX_WAIT.max(growing) {
            return Err(fault);
        }
        let of = fault.tries();
        self.note(&format!("{what}: {fault}; trying again in {} s ({} of {of})", Shown(pause), tries.done));
        std::thread::sleep(pause);
        Ok(())
    }
}

/// The number of retries so far.
#[derive(Debug, Default)]
pub(super) struct Tries {
    pub(super) done: u32,
}

/// Seconds for messages, without decimals if there are none.
struct Shown(Duration);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.subsec_millis() {
            0 => write!(f, "{}", self.0.as_secs()),
            _ => write!(f, "{:.2}", self.0.as_secs_f64()),
        }
    }
}

/// Returns whether a redirect has the hub's headers about a file, so that only the place of its content is left to
/// find. A redirect within the hub is followed unless it has the ETag of the linked file.
fn says_what_it_is(answer: &Answer, within: bool) -> bool {
    let has = |name: &str| answer.header(name).is_some();
    has("x-repo-commit") && (has("x-linked-etag") || !within && has("etag"))
}

/// Returns the fault for an answer without success.
fn refusal(answer: &Answer, status: u16) -> Fault {
    Fault::Status {
        address: shown(&answer.address).to_owned(),
        status,
        code: answer.header("x-error-code").unwrap_or_default().to_owned(),
        wait: retry_after(answer),
    }
}

/// Returns how long an answer asks to wait: `Retry-After` in seconds or as a date, or else the time until a rate limit
/// resets (`RateLimit: ...;r=0;t=12`).
fn retry_after(answer: &Answer) -> Option<Duration> {
    if let Some(text) = answer.header("retry-after") {
        let text = text.trim();
        if let Ok(seconds) = text.parse() {
            return Some(Duration::from_secs(seconds));
        }
        let at = UNIX_EPOCH + Duration::from_secs(http_date(text)?);
        return Some(at.duration_since(SystemTime::now()).unwrap_or_default());
    }
    let limit = answer.header("ratelimit")?;
    let field = |name: &str| -> Option<u64> {
        limit.split(';').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    (field("r")? == 0).then(|| field("t")).flatten().map(Duration::from_secs)
}

/// Converts a date like `Sun, 06 Nov 1994 08:49:37 GMT` to seconds since 1970.
fn http_date(text: &str) -> Option<u64> {
    let mut parts = text.split_once(", ")?.1.split(' ');
    let day: u64 = parts.next()?.parse().ok()?;
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let name = parts.next()?;
    let month = months.iter().position(|month| *month == name)? as u64 + 1;
    let year: u64 = parts.next()?.parse().ok().filter(|year| (1970..10000).contains(year))?;
    let clock: Vec<u64> = parts.next()?.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = clock[..] else { return None };
    if !(1..=31).contains(&day) || hours > 23 || minutes > 59 || seconds > 60 {
        return None;
    }
    // Years begin with March here, so that a leap day is the last day.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    Some((days - 719_468) * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

/// Returns the fault for a request without an answer.
fn broken(address: &str, error: ureq::Error, timeout: Duration) -> Fault {
    let waited = format!("nothing came for {} s", Shown(timeout));
    let (what, again) = match error {
        ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => (waited, Again::Few),
        ureq::Error::Timeout(_) => (waited, Again::Often),
        ureq::Error::HostNotFound => ("no such host is known".to_owned(), Again::Few),
        ureq::Error::ConnectionFailed => ("no connection".to_owned(), Again::Few),
        ureq::Error::Io(error) => return broken_io(address, &error, timeout),
        ureq::Error::Protocol(error) => (format!("not an HTTP answer: {error}"), Again::Often),
        error => (error.to_string(), Again::No),
    };
    Fault::transfer(address, what, again)
}

/// Returns the fault for a body that broke off.
pub(super) fn broken_io(address: &str, error: &std::io::Error, timeout: Duration) -> Fault {
    use std::io::ErrorKind;
    if let Some(ureq::Error::Timeout(_)) = error.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
        return Fault::transfer(address, format_args!("nothing came for {} s", Shown(timeout)), Again::Often);
    }
    match error.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => {
            Fault::transfer(address, format_args!("nothing came for {} s", Shown(timeout)), Again::Often)
        }
        ErrorKind::ConnectionRefused | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            Fault::transfer(address, error, Again::Few)
        }
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => {
            Fault::transfer(address, "the connection broke off", Again::Often)
        }
        _ => Fault::transfer(address, error, Again::Often),
    }
}

#[cfg(test)]
mod tests {
    use super::http_date;

    #[test]
    fn dates_of_http_are_seconds() {
        assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(http_date("Thu, 29 Feb 2024 12:00:00 GMT"), Some(1_709_208_000));
        for odd in ["", "tomorrow", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49 GMT"] {
            assert_eq!(http_date(odd), None, "{odd}");
        }
    }
}
