//! A query of Prometheus that any result of speaks against a run, such as an alert that fires.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use hyper::{Request, Uri};
use serde::de::{IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Denied, shorten};
use crate::http_client::{Body, send};

/// An answer of <https://prometheus.io/docs/prometheus/latest/querying/api/#instant-queries>.
#[derive(Deserialize)]
struct Answer<R> {
    data: Option<Data<R>>,
    error: Option<String>,
    /// Such as a remote storage that did not answer: the result may be incomplete.
    warnings: Option<First<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data<R> {
    result_type: String,
    result: R,
}

#[derive(Deserialize)]
struct Series {
    metric: BTreeMap<String, String>,
}

/// The first element of a list. The rest is not kept: a result may have a million series.
struct First<T>(Option<T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for First<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
            type Value = First<T>;

            fn expecting(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
                text.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<First<T>, A::Error> {
                let first = list.next_element()?;
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}

/// Evaluates `query` in the Prometheus at `url`, now. Refused if it has a result.
pub async fn ask(url: &str, query: &str) -> Result<(), Denied> {
    let answer = async {
        let parameters = serde_urlencoded::to_string([("query", query)])?;
        let url = format!("{}/api/v1/query?{parameters}", url.trim_end_matches('/'));
        send(Request::get(url.parse::<Uri>()?).body(Body::default())?).await
    };
    let (status, body) = answer.await.map_err(|error| Denied::failed(url, &error))?;
    let found = judge(&body).unwrap_or_else(|_| Err(Denied::text(status, &body)));
    match found.map_err(|text| Denied::Failed(format!("{url}: {text}")))? {
        None => Ok(()),
        Some(result) => {
            let text = format!("the query has a result: {result}");
            Err(Denied::Refused(text))
        }
    }
}

/// What the query has found, in words; `None` if nothing.
///
/// # Errors
/// The outer one if the answer is not understood; the inner one if it is an error.
fn judge(body: &[u8]) -> serde_json::Result<Result<Option<String>, String>> {
    let answer: Answer<IgnoredAny> = serde_json::from_slice(body)?;
    let data = match (answer.data, answer.error) {
        (Some(data), None) => data,
        (_, error) => return Ok(Err(shorten(&error.unwrap_or_default()))),
    };
    let found = match data.result_type.as_str() {
        "vector" | "matrix" => {
            let first = result::<First<Series>>(body)?.and_then(|list| list.0);
            let labels = first.map(|series| serde_json::to_string(&series.metric));
            labels.transpose()?
        }
        "scalar" | "string" => result::<(IgnoredAny, String)>(body)?.map(|(_, text)| text),
        other => return Ok(Err(format!("{} is no type of a result", shorten(other)))),
    };
    Ok(match (found, answer.warnings.and_then(|list| list.0)) {
        (Some(found), _) => Ok(Some(shorten(&found))),
        (None, Some(warning)) => Err(shorten(&warning)),
        (None, None) => Ok(None),
    })
}

fn result<'de, R: Deserialize<'de>>(body: &'de [u8]) -> serde_json::Result<Option<R>> {
    let answer: Answer<R> = serde_json::from_slice(body)?;
    Ok(answer.data.map(|data| data.result))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(body: &str) -> Result<Option<String>, String> {
        judge(body.as_bytes()).unwrap_or_else(|error| panic!("{body}: {error}"))
    }

    fn answer(kind: &str, result: &str, more: &str) -> String {
        format!(
            r#"{{"status":"success","data":{{"resultType":"{kind}","result":{result}}}{more}}}"#
        )
    }

    #[test]
    fn a_result_is_named_by_its_first_series() {
        let series =
            r#"[{"metric":{"alertname":"A"},"value":[1,"1"]},{"metric":{},"value":[1,"1"]}]"#;
        let found = Ok(Some(r#"{"alertname":"A"}"#.to_owned()));
        assert_eq!(judged(&answer("vector", series, "")), found);
        assert_eq!(
            judged(&answer("scalar", r#"[1.5,"7"]"#, "")),
            Ok(Some("7".to_owned()))
        );
        assert_eq!(judged(&answer("vector", "[]", "")), Ok(None));
        assert!(judge(b"{}").is_ok_and(|found| found.is_err()));
        assert!(judge(answer("vector", "7", "").as_bytes()).is_err());
        assert!(judge(b"<html>").is_err());
    }

    #[test]
    fn nothing_with_a_warning_is_no_answer() {
        let warned = |result| judged(&answer("vector", result, r#","warnings":["incomplete"]"#));
        assert_eq!(warned("[]"), Err("incomplete".to_owned()));
        assert!(warned(r#"[{"metric":{}}]"#).is_ok());
        assert_eq!(
            judged(&answer("vector", "[]", r#","warnings":[]"#)),
            Ok(None)
        );
    }

    #[test]
    fn an_error_is_shortened_and_has_no_control_characters() {
        let long = format!(r#"{{"error":"\u001b[2J{}"}}"#, "x".repeat(9999));
        for body in [long, answer(&"\\u001b".repeat(9999), "[]", "")] {
            let text = judged(&body).unwrap_err();
            assert!(text.chars().count() < 250, "{text}");
            assert!(!text.contains('\u{1b}'), "{text}");
        }
    }
}
