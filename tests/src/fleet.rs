//! Devices by the thousand: each asks under nonces of its own, and a handful of MQTT connections are shared among them, so that a storm fits into one process.
//!
//! They do as firmware does: told to come back, they come back when they were told to; given a secret_id, they report with proof.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use keyturn_proto::device::{DeviceId, DeviceNonce, proof, topic};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Filter, Packet};
use rumqttc::v5::{AsyncClient, Event, EventLoop, MqttOptions};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A fleet that is not done by then never will be.
const PATIENCE: Duration = Duration::from_secs(300);
/// Filters in one SUBSCRIBE.
const FILTERS: usize = 100;
/// Own messages under way without the broker's acknowledgement, per connection.
const IN_FLIGHT: u16 = 200;

/// The id of the `n`th device.
pub fn id(n: usize) -> DeviceId {
    format!("river-{n:05}").parse().unwrap()
}

/// Its `n` again.
pub fn number(id: &DeviceId) -> usize {
    id.as_str().strip_prefix("river-").unwrap().parse().unwrap()
}

/// One connection and the devices behind it.
pub struct Line {
    client: AsyncClient,
    events: EventLoop,
    devices: Vec<Device>,
    /// Places in `devices` by command topic.
    places: HashMap<String, usize>,
}

struct Device {
    id: DeviceId,
    nonce: DeviceNonce,
    story: Story,
}

/// What became of one device in one storm.
#[derive(Clone, Default)]
pub struct Story {
    /// From its first request to its secret_id.
    pub took: Duration,
    /// Which of its connection's devices it was, in the order of asking and in the order of being given.
    pub asked_as: usize,
    pub given_as: usize,
    /// How often it was told to come back.
    pub retries: usize,
    /// Every secret_id it was given.
    pub secret_ids: Vec<String>,
}

fn connect(name: &str, broker: SocketAddr, capacity: usize) -> (AsyncClient, EventLoop) {
    let mut options = MqttOptions::new(name, broker.ip().to_string(), broker.port());
    options
        .set_clean_start(true)
        .set_outgoing_inflight_upper_limit(IN_FLIGHT)
        .set_keep_alive(Duration::from_secs(60));
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    AsyncClient::new(options, capacity)
}

/// Subscribes and waits for every answer.
async fn listen(client: &AsyncClient, events: &mut EventLoop, topics: &[String]) {
    let packets = topics.chunks(FILTERS);
    let mut open = packets.len();
    for topics in packets {
        let filters = topics
            .iter()
            .map(|topic| Filter::new(topic.clone(), QoS::AtLeastOnce));
        client.try_subscribe_many(filters).unwrap();
    }
    while open > 0 {
        if let Event::Incoming(Packet::SubAck(_)) = events.poll().await.unwrap() {
            open -= 1;
        }
    }
}

impl Line {
    /// Connects, and hears the commands of `devices`.
    pub async fn open(
        name: &str,
        broker: SocketAddr,
        devices: impl Iterator<Item = usize>,
    ) -> Self {
        let devices: Vec<Device> = devices
            .map(|n| Device {
                id: id(n),
                nonce: DeviceNonce::generate().unwrap(),
                story: Story::default(),
            })
            .collect();
        let topics: Vec<String> = devices
            .iter()
            .map(|device| topic::command(&device.id))
            .collect();
        let (client, mut events) = connect(name, broker, devices.len() * 4 + 16);
        listen(&client, &mut events, &topics).await;
        let places = topics.into_iter().zip(0..).collect();
        Self {
            client,
            events,
            devices,
            places,
        }
    }

    /// Every device asks at once. Ends when each has a secret_id and all has been said to the broker.
    pub async fn storm(mut self) -> (Self, Vec<Story>) {
        let begun = Instant::now();
        for place in 0..self.devices.len() {
            let device = &mut self.devices[place];
            device.nonce = DeviceNonce::generate().unwrap();
            device.story = Story {
                asked_as: place,
                ..Story::default()
            };
            self.ask(place);
        }
        let (mut given, mut said, mut heard) = (0, self.devices.len(), 0);
        let until = begun + PATIENCE;
        while given < self.devices.len() || heard < said {
            let event = tokio::time::timeout_at(until, self.events.poll()).await;
            let event = event.expect("not every device was given a secret_id");
            match event.expect("the connection to the broker broke") {
                Event::Incoming(Packet::PubAck(_)) => heard += 1,
                Event::Incoming(Packet::Publish(publish)) => {
                    let topic = std::str::from_utf8(&publish.topic).unwrap();
                    let place = self.places[topic];
                    let answer: Value = serde_json::from_slice(&publish.payload).unwrap();
                    said += 1;
                    if self.answered(place, &answer, begun, given) {
                        given += 1;
                    }
                }
                _ => {}
            }
        }
        let stories = self.devices.iter().map(|device| device.story.clone());
        let stories = stories.collect();
        (self, stories)
    }

    /// One device asks, once; how long until it was given a secret_id.
    pub async fn single(&mut self, place: usize) -> Duration {
        self.devices[place].nonce = DeviceNonce::generate().unwrap();
        let begun = Instant::now();
        self.ask(place);
        let topic = topic::command(&self.devices[place].id);
        let answer = self.hear(&topic).await;
        let took = begun.elapsed();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        assert!(self.answered(place, &answer, begun, 0), "{answer}");
        took
    }

    /// A message of the same size there and back through the broker alone.
    pub async fn round_trip(&mut self, echo: &Echo) -> Duration {
        let payload = self.request(0);
        let begun = Instant::now();
        let sent = self
            .client
            .try_publish(echo.there.clone(), QoS::AtLeastOnce, false, payload);
        sent.unwrap();
        self.hear(&echo.back).await;
        begun.elapsed()
    }

    /// Also hears what `echo` sends back.
    pub async fn listen_to(&mut self, echo: &Echo) {
        listen(
            &self.client,
            &mut self.events,
            std::slice::from_ref(&echo.back),
        )
        .await;
    }

    async fn hear(&mut self, topic: &str) -> Bytes {
        let until = Instant::now() + PATIENCE;
        loop {
            let event = tokio::time::timeout_at(until, self.events.poll()).await;
            let event = event.expect("no answer came");
            if let Event::Incoming(Packet::Publish(publish)) = event.unwrap()
                && publish.topic == topic
            {
                return publish.payload;
            }
        }
    }

    /// Takes an answer in; whether it is a secret_id.
    fn answered(&mut self, place: usize, answer: &Value, begun: Instant, given: usize) -> bool {
        let device = &mut self.devices[place];
        assert_eq!(
            answer["nonce"],
            device.nonce.as_str(),
            "an answer to another request"
        );
        if let Some(secret_id) = answer["secret_id"].as_str() {
            device.story.took = begun.elapsed();
            device.story.given_as = given;
            device.story.secret_ids.push(secret_id.to_owned());
            let proof = proof::proof(secret_id, &device.nonce);
            let report = json!({ "nonce": device.nonce, "auth_result": "ok", "proof": proof });
            let topic = topic::status(&device.id);
            let sent = self
                .client
                .try_publish(topic, QoS::AtLeastOnce, false, report.to_string());
            sent.unwrap();
            return true;
        }
        let seconds = answer["retry_after_sec"].as_u64().unwrap();
        device.story.retries += 1;
        device.nonce = DeviceNonce::generate().unwrap();
        let (client, topic, request) = (
            self.client.clone(),
            topic::status(&device.id),
            self.request(place),
        );
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            // The connection may have ended with its test.
            drop(
                client
                    .publish(topic, QoS::AtLeastOnce, false, request)
                    .await,
            );
        });
        false
    }

    fn ask(&self, place: usize) {
        let topic = topic::status(&self.devices[place].id);
        let request = self.request(place);
        let sent = self
            .client
            .try_publish(topic, QoS::AtLeastOnce, false, request);
        sent.unwrap();
    }

    fn request(&self, place: usize) -> String {
        let Device { id, nonce, .. } = &self.devices[place];
        json!({ "nonce": nonce, "device_id": id, "auth_request": "secret_id", "reason": "invalid_secret" })
            .to_string()
    }
}

/// Sends back what it hears: what the broker and the client library take by themselves.
pub struct Echo {
    there: String,
    back: String,
    task: JoinHandle<()>,
}

impl Echo {
    pub async fn start(broker: SocketAddr) -> Self {
        let (there, back) = ("echo/there".to_owned(), "echo/back".to_owned());
        let (client, mut events) = connect("echo", broker, 64);
        listen(&client, &mut events, std::slice::from_ref(&there)).await;
        let topic = back.clone();
        let task = tokio::spawn(async move {
            loop {
                if let Event::Incoming(Packet::Publish(publish)) = events.poll().await.unwrap() {
                    let sent = client.try_publish(&topic, QoS::AtLeastOnce, false, publish.payload);
                    sent.unwrap();
                }
            }
        });
        Self { there, back, task }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Storms over all lines at once; the stories of all devices, line by line.
pub async fn storm(lines: &mut Vec<Line>) -> Vec<Vec<Story>> {
    let storms: Vec<_> = lines
        .drain(..)
        .map(|line| tokio::spawn(line.storm()))
        .collect();
    let mut told = Vec::with_capacity(storms.len());
    for storm in storms {
        let (line, stories) = storm.await.unwrap();
        lines.push(line);
        told.push(stories);
    }
    told
}

/// Panics unless every device has exactly one secret_id, and no two the same.
pub fn everybody_once(told: &[Vec<Story>]) {
    let mut seen = BTreeSet::new();
    for story in told.iter().flatten() {
        assert_eq!(story.secret_ids.len(), 1, "given more than one secret_id");
        assert!(
            seen.insert(&story.secret_ids[0]),
            "two devices share a secret_id"
        );
    }
}

/// The most places by which a device was overtaken by those who had asked after it, on any one connection: the broker keeps the order of one connection, and
/// nobody that of several.
pub fn most_overtaken(told: &[Vec<Story>]) -> usize {
    let stories = told.iter().flatten();
    stories
        .map(|story| story.given_as.saturating_sub(story.asked_as))
        .max()
        .unwrap_or(0)
}
