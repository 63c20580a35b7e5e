//! A judge of free answers behind an address that speaks OpenAI's chat API.

use std::time::Duration;

use mutandis_bench::judge::{Judge, verdict, wording};
use mutandis_edit::{Error, Result};
use serde_json::{Value, json};

/// How long a judge may think about one answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Tries of one question, where the endpoint is busy or out of reach.
const TRIES: u32 = 3;

/// Most that is read of a reply, in bytes.
const LONGEST: u64 = 1 << 20;

/// A model at an endpoint. Not `Debug`, because it holds a key.
pub struct Endpoint {
    agent: ureq::Agent,
    /// Up to and with `/v1`, or whatever stands before `/chat/completions`.
    url: String,
    model: String,
    key: Option<String>,
}

impl Endpoint {
    /// The model of that name at an address such as `http://127.0.0.1:8080/v1`; the key, where there
    /// is one, goes there and nowhere else.
    pub fn new(url: &str, model: &str, key: Option<String>) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // A key does not follow a redirect to somewhere else.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        let url = url.trim_end_matches('/').trim_end_matches("/chat/completions").to_owned();
        Self { agent: config.into(), url, model: model.to_owned(), key }
    }

    /// One try: the reply, or what went wrong and whether another try may help.
    fn ask(&self, text: &str) -> Result<String, (String, bool)> {
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
        let mut response = request.send_json(&asked).map_err(|e| (e.to_string(), true))?;
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(LONGEST).read_to_string();
        let body = body.map_err(|e| (e.to_string(), true))?;
        if status != 200 {
            let shown: String = body.chars().take(200).collect();
            return Err((format!("status {status}: {shown}"), status == 429 || status >= 500));
        }
        let reply: Value =
            serde_json::from_str(&body).map_err(|e| (format!("its reply is not JSON: {e}"), false))?;
        let content = reply["choices"][0]["message"]["content"].as_str();
        content
            .map(str::to_owned)
            .ok_or_else(|| ("its reply has no `choices[0].message.content`".into(), false))
    }
}

impl Judge for Endpoint {
    fn name(&self) -> String {
        self.model.clone()
    }

    fn is_right(&self, question: &str, right: &[String], said: &str) -> Result<Option<bool>> {
        let text = wording(question, right, said);
        let mut tries = 1;
        loop {
            match self.ask(&text) {
                Ok(reply) => return Ok(verdict(&reply)),
                Err((_, true)) if tries < TRIES => {
                    std::thread::sleep(Duration::from_millis(500 << tries));
                    tries += 1;
                }
                Err((why, _)) => {
                    return Err(Error::input_hint(
                        format!("the judge `{}` at `{}` cannot be asked: {why}", self.model, self.url),
                        "give the address of an API like OpenAI's with `--judge`, its model with \
                         `--judge-model`, and a key in `MUTANDIS_JUDGE_KEY`; what is done is kept",
                    ));
                }
            }
        }
    }
}
