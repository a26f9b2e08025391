//! Asks for metrics as Prometheus does: the same headers, over one connection as long as that stays open.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What Prometheus 2.42 sends (scrape/scrape.go, net/http).
const HEADERS: &str = "\
User-Agent: Prometheus/2.42.0\r\n\
Accept: application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1\r\n\
Accept-Encoding: gzip\r\n\
X-Prometheus-Scrape-Timeout-Seconds: 10\r\n";

/// A connection to something that serves metrics.
#[derive(Debug)]
pub struct Target {
    pub address: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Target {
    pub fn connect(address: SocketAddr) -> io::Result<Target> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Target {
            address,
            stream: BufReader::new(stream),
        })
    }

    /// Scrapes once: the body as it was sent, perhaps compressed. If the connection was closed since
    /// the last time, over a new one, as Prometheus does (net/http, Transport).
    pub fn scrape(&mut self) -> io::Result<Vec<u8>> {
        self.ask().or_else(|_| {
            *self = Target::connect(self.address)?;
            self.ask()
        })
    }

    fn ask(&mut self) -> io::Result<Vec<u8>> {
        let request = format!(
            "GET /metrics HTTP/1.1\r\nHost: {}\r\n{HEADERS}\r\n",
            self.address
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let status = self.line()?;
        if !status.starts_with("HTTP/1.1 200") {
            return Err(io::Error::other(status));
        }
        let mut length = None;
        loop {
            let line = self.line()?.to_ascii_lowercase();
            match line.split_once(": ") {
                None => break,
                Some(("content-length", value)) => length = value.parse().ok(),
                Some(_) => {}
            }
        }
        let mut body = Vec::new();
        match length {
            Some(length) => self.take(length, &mut body)?,
            // Otherwise in chunks, each with its length before it, the last of length 0.
            None => loop {
                let length = u64::from_str_radix(&self.line()?, 16).map_err(io::Error::other)?;
                self.take(length, &mut body)?;
                self.line()?;
                if length == 0 {
                    break;
                }
            },
        }
        Ok(body)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn take(&mut self, length: u64, body: &mut Vec<u8>) -> io::Result<()> {
        let read = (&mut self.stream).take(length).read_to_end(body)?;
        if read as u64 == length {
            Ok(())
        } else {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }
}
