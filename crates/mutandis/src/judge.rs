//! A judge of free answers behind an address that speaks OpenAI's chat API.

use std::time::{Duration, Instant};

use mutandis_bench::judge::{Judge, verdict, wording};
use mutandis_edit::{Error, Result};
use serde_json::{Value, json};

use crate::interrupt::Interrupt;

/// How long a judge may think about one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tries of one question, where the endpoint is busy or out of reach: with pauses of 1, 2, 4 and 8
/// seconds between them, or as long as it asks for.
const TRIES: u32 = 5;

/// The longest pause that an endpoint may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Most that is read of a reply, in bytes.
const LONGEST: u64 = 1 << 20;

/// The way out, where a judge cannot be asked.
const HINT: &str = "give the address of an API like OpenAI's with `--judge`, such as http://127.0.0.1:8080/v1, its model \
                    with `--judge-model`, and a key in `MUTANDIS_JUDGE_KEY`; what is done is kept";

/// A model at an endpoint. Not `Debug`, because it holds a key.
pub struct Endpoint {
    agent: ureq::Agent,
    /// Up to and with `/v1`, or whatever stands before `/chat/completions`.
    url: String,
    model: String,
    key: Option<String>,
    interrupt: Interrupt,
}

/// What went wrong with one try.
struct Failed {
    why: String,
    again: Again,
}

/// Whether another try may help.
enum Again {
    No,
    /// It may be back in a moment, if it was ever there.
    Unreached,
    /// It is busy, and says for how long, or not.
    Busy(Option<Duration>),
}

impl Failed {
    fn unreached(why: impl ToString) -> Self {
        Self { why: why.to_string(), again: Again::Unreached }
    }
}

impl Endpoint {
    /// The model of that name at an address such as `http://127.0.0.1:8080/v1`; the key, where there
    /// is one, goes there and nowhere else.
    ///
    /// # Errors
    /// Where it is no address, or the model has no name.
    pub fn new(url: &str, model: &str, key: Option<String>, interrupt: &Interrupt) -> Result<Self> {
        let wrong = |what: String| Err(Error::input_hint(what, HINT));
        let host = ["http://", "https://"].iter().find_map(|scheme| url.strip_prefix(scheme));
        let Some(host) = host.filter(|host| !host.is_empty() && !host.starts_with('/')) else {
            return wrong(format!(
                "`{url}` is no address of a judge: it has to begin with http:// or https://"
            ));
        };
        if host.split('/').next().is_some_and(|host| host.contains('@')) {
            return wrong(
                "the judge's address holds a name or a password, which would stand in messages".into(),
            );
        }
        if url.contains(['?', '#']) || url.contains(char::is_whitespace) {
            return wrong(format!("the judge's address `{url}` has more in it than where its API is"));
        }
        if model.trim().is_empty() {
            return wrong("`--judge-model` is empty".into());
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // A key does not follow a redirect to somewhere else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        let url = url.trim_end_matches('/').trim_end_matches("/chat/completions").to_owned();
        Ok(Self { agent: config.into(), url, model: model.to_owned(), key, interrupt: interrupt.clone() })
    }

    /// Asks something whose answer does not matter, so that a judge that cannot be asked is found out
    /// before the work.
    ///
    /// # Errors
    /// Where it cannot be asked, or answers in another way than a chat API.
    pub fn greet(&self) -> Result<()> {
        match self.answer(&wording("The capital of France is", &["Paris".to_owned()], "Paris"), false)? {
            Some(_) => Ok(()),
            None => Err(self.unreachable("its reply has no `choices[0].message.content`")),
        }
    }

    fn unreachable(&self, why: &str) -> Error {
        let why: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        Error::input_hint(
            format!("the judge `{}` at `{}` cannot be asked: {why}", self.model, self.url),
            HINT,
        )
    }

    /// What it replies, if anything, after as many tries as it takes. One that was never there is not
    /// waited for.
    fn answer(&self, text: &str, was_there: bool) -> Result<Option<String>> {
        let mut tries = 1;
        loop {
            let Failed { why, again } = match self.ask(text) {
                Ok(reply) => return Ok(reply),
                Err(failed) => failed,
            };
            let pause = match again {
                Again::Busy(pause) => pause,
                Again::Unreached if was_there => None,
                Again::Unreached | Again::No => return Err(self.unreachable(&why)),
            };
            if tries == TRIES {
                return Err(self.unreachable(&format!("{why} ({TRIES} tries)")));
            }
            self.pause(pause.unwrap_or(Duration::from_secs(1 << (tries - 1))))?;
            tries += 1;
        }
    }

    fn pause(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time.min(LONGEST_PAUSE);
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if self.interrupt.is_raised() {
                return Err(Error::Interrupted);
            }
            std::thread::sleep(left.min(Duration::from_millis(100)));
        }
        Ok(())
    }

    /// One try: the reply, where there is one in words.
    fn ask(&self, text: &str) -> Result<Option<String>, Failed> {
        let mut request = self.agent.post(format!("{}/chat/completions", self.url));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let asked = json!({
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "temperature": 0,
            "max_tokens": 16,
        });
        let mut response = request.send_json(&asked).map_err(Failed::unreached)?;
        let status = response.status().as_u16();
        let pause =
            response.headers().get("retry-after").and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let body = response.body_mut().with_config().limit(LONGEST).read_to_string();
        let body = body.map_err(Failed::unreached)?;
        if status != 200 {
            let shown: String = body.chars().take(200).collect();
            let is_busy = status == 429 || status >= 500;
            let again = if is_busy { Again::Busy(pause.map(Duration::from_secs)) } else { Again::No };
            return Err(Failed { why: format!("status {status}: {shown}"), again });
        }
        let reply: Value = serde_json::from_str(&body)
            .map_err(|e| Failed { why: format!("its reply is not JSON: {e}"), again: Again::No })?;
        // A filter may have left nothing of it; some have it in parts.
        Ok(match &reply["choices"][0]["message"]["content"] {
            Value::String(text) => Some(text.clone()),
            Value::Array(parts) => Some(parts.iter().filter_map(|part| part["text"].as_str()).collect()),
            _ => None,
        })
    }
}

impl Judge for Endpoint {
    fn name(&self) -> String {
        self.model.clone()
    }

    fn is_right(&self, question: &str, right: &[String], said: &str) -> Result<Option<bool>> {
        Ok(self.answer(&wording(question, right, said), true)?.and_then(|reply| verdict(&reply)))
    }
}
