//! A query of Prometheus that any result of speaks against a run, such as an alert that fires.

use hyper::{Request, Uri};
use serde::Deserialize;
use serde_json::Value;

use super::Denied;
use crate::http_client::{Body, send};

/// Maximum length of a result in messages, in characters.
const LONGEST_RESULT: usize = 120;

/// An answer of <https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries>.
#[derive(Deserialize)]
struct Answer {
    data: Option<Data>,
    error: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: Value,
}

/// Evaluates `query` in the Prometheus at `url`, now. Refused if it has a result.
pub async fn ask(url: &str, query: &str) -> Result<(), Denied> {
    let answer = async {
        let parameters = serde_urlencoded::to_string([("query", query)])?;
        let url = format!("{}/api/v1/query?{parameters}", url.trim_end_matches('/'));
        send(Request::get(url.parse::<Uri>()?).body(Body::default())?).await
    };
    let (status, body) = answer.await.map_err(|error| Denied::failed(url, &error))?;
    let wrong = |text| Denied::Failed(format!("{url}: {text}"));
    let answer: Answer =
        serde_json::from_slice(&body).map_err(|_| wrong(Denied::text(status, &body)))?;
    let data = answer.data.filter(|_| answer.error.is_none());
    let data = data.ok_or_else(|| wrong(answer.error.unwrap_or_default()))?;
    judge(&data).map_err(wrong)?.map_or(Ok(()), |result| {
        Err(Denied::Refused(format!("the query has a result: {result}")))
    })
}

/// What the query has found, in words; `None` if nothing.
fn judge(data: &Data) -> Result<Option<String>, String> {
    let list = data.result.as_array().ok_or("the answer has no result")?;
    Ok(match data.result_type.as_str() {
        "vector" | "matrix" => list.first().map(|first| shorten(&first["metric"])),
        "scalar" | "string" => Some(shorten(list.get(1).unwrap_or(&Value::Null))),
        other => return Err(format!("{other} is no type of a result")),
    })
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    let short: String = text.chars().take(LONGEST_RESULT).collect();
    match short.len() < text.len() {
        true => short + "…",
        false => short,
    }
}
