#!/usr/bin/env python3
"""A device that keeps its AppRole secret_id fresh over MQTT: a working example for firmware authors.

It logs in with what it has; when that is refused, or when it is invited (a "ping"), it asks for a new secret_id, tries it, keeps it, and reports how it
went. README.md beside this file tells the same in pseudocode. Needs Python 3.9, paho-mqtt and cryptography (requirements.txt).

What must always hold:
- what works is never given up for something that was not tried: the old secret_id goes when a login with the new one has worked;
- a power cut at any moment loses nothing: every step is in the state file before the next one begins;
- an answer counts only under the nonce of the request that is under way; with a sealing key, only a sealed one;
- a wrapping token is exchanged at once and once: one that somebody else has exchanged before us is reported as such;
- a secret_id is neither printed nor put on a command line.

Standard output has one JSON object per line that says what happened.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import queue
import random
import re
import secrets
import ssl
import struct
import sys
import threading
import time
import urllib.error
import urllib.request

import paho.mqtt.client as mqtt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

MAX_COMMAND = 8192
LONGEST_PAUSE = 3600
# What Vault says of a wrapping token that is used up, expired or none.
REFUSED = (400, 403, 404)


# ---- the protocol, without any network: what the test vectors are for ----


def b64url(raw):
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def from_b64url(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def length_prefixed(*fields):
    return b"".join(struct.pack(">I", len(field)) + field for field in fields)


def proof(credential, nonce):
    """Shows the service that we hold what it sent, without showing it to anybody else."""
    return b64url(hmac.digest(credential.encode(), nonce.encode(), hashlib.sha256))


def statement(domain, device_id, nonce, ts):
    return length_prefixed(domain.encode(), device_id.encode(), nonce.encode(), str(ts).encode())


def hpke_open(private, suite, device_id, nonce, enc, ct):
    """RFC 9180, mode base, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256; `suite` names the AEAD."""
    aead_id, key_length, aead = {
        "x25519-sha256-aes128gcm": (1, 16, AESGCM),
        "x25519-sha256-chacha20poly1305": (3, 32, ChaCha20Poly1305),
    }[suite]
    kem = b"KEM" + struct.pack(">H", 0x0020)
    hpke = b"HPKE" + struct.pack(">HHH", 0x0020, 0x0001, aead_id)

    def extract(suite_id, salt, label, ikm):
        return hmac.digest(salt, b"HPKE-v1" + suite_id + label + ikm, hashlib.sha256)

    def expand(suite_id, prk, label, info, length):
        # At most 32 bytes are asked for, which is one block of HKDF-Expand.
        info = struct.pack(">H", length) + b"HPKE-v1" + suite_id + label + info + b"\x01"
        return hmac.digest(prk, info, hashlib.sha256)[:length]

    dh = private.exchange(X25519PublicKey.from_public_bytes(enc))
    kem_context = enc + private.public_key().public_bytes_raw()
    shared = expand(kem, extract(kem, b"", b"eae_prk", dh), b"shared_secret", kem_context, 32)
    info = length_prefixed(b"keyturn/sealed-command/1", device_id.encode())
    context = b"\x00" + extract(hpke, b"", b"psk_id_hash", b"") + extract(hpke, b"", b"info_hash", info)
    secret = extract(hpke, shared, b"secret", b"")
    key = expand(hpke, secret, b"key", context, key_length)
    base_nonce = expand(hpke, secret, b"base_nonce", context, 12)
    return aead(key).decrypt(base_nonce, ct, nonce.encode())


# ---- what survives a power cut ----


class State:
    """role_id, secret_id: what works. asked: the nonce under way. candidate: received, not tried; until it is exchanged, with a wrapping_token in place of the
    secret_id. report: to be told to the service."""

    def __init__(self, path):
        self.path = path
        try:
            with open(path, encoding="utf-8") as file:
                self.fields = json.load(file)
        except FileNotFoundError:
            self.fields = {}

    def get(self, name):
        return self.fields.get(name)

    def change(self, **fields):
        """All of it or nothing. None takes a field away."""
        changed = {**self.fields, **fields}
        changed = {name: value for name, value in changed.items() if value is not None}
        beside = self.path + ".new"
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            json.dump(changed, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self.path)
        folder = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        self.fields = changed


# ---- the device ----


class Device:
    def __init__(self, options):
        self.options = options
        self.id = options.id
        self.state = State(options.state)
        self.identity = options.identity_key and Ed25519PrivateKey.from_private_bytes(read_key(options.identity_key))
        self.sealing = options.sealing_key and X25519PrivateKey.from_private_bytes(read_key(options.sealing_key))
        # The network's thread only puts in; everything is decided in one place, one thing after the other.
        self.inbox = queue.Queue(maxsize=64)
        self.acknowledged = queue.SimpleQueue()
        # Whether an answer would reach us; until then nothing is asked.
        self.listening = threading.Event()
        self.invitation = None
        self.mqtt = self.client()

    def run(self):
        self.mqtt.connect_async(self.options.broker, self.options.port, keepalive=30, **self.session())
        self.mqtt.loop_start()
        renew = self.options.renew
        while True:
            self.finish_what_was_begun()
            works = None if renew else self.works(self.state.get("role_id"), self.state.get("secret_id"))
            if renew or works is False or self.invitation:
                self.ask_until_it_works("renewal" if renew else "scheduled" if works else "invalid_secret")
                renew = False
            elif works and self.options.once:
                break
            else:
                # None: the login cannot be reached. That is no reason for a new secret_id.
                self.wait_for_invitation(self.options.check if works else min(self.options.check, 30))
        self.mqtt.disconnect()
        self.mqtt.loop_stop()

    def finish_what_was_begun(self):
        if self.state.get("candidate"):
            self.try_candidate()
        if self.state.get("report"):
            self.report()

    def ask_until_it_works(self, reason):
        pause = patience = self.options.patience
        # A request that was under way when the power went may still be answered.
        nonce = self.state.get("asked") or self.take_invitation() or secrets.token_hex(16)
        while True:
            self.ask(nonce, reason)
            answer = self.answer_to(nonce, patience)
            asked_at = self.state.get("asked_at")
            self.state.change(asked=None, asked_at=None)
            if answer is None:
                say("no_answer", nonce=nonce)
                self.wait_for_invitation(pause * random.uniform(0.5, 1))
                pause = min(pause * 2, LONGEST_PAUSE)
                # Where answers take longer than that, each would be thrown away for the next question.
                patience = min(patience * 2, LONGEST_PAUSE)
            elif "error" in answer:
                say("told_to_wait", nonce=nonce, error=answer["error"], seconds=answer["retry_after_sec"])
                self.wait_for_invitation(min(answer["retry_after_sec"], LONGEST_PAUSE))
            else:
                candidate = {name: answer[name] for name in ("nonce", "role_id")}
                if "wrapping_token" in answer:
                    candidate["wrapping_token"] = answer["wrapping_token"]
                    # It may have been on its way for long; but it was made after we asked.
                    candidate["good_until"] = (asked_at or time.time()) + answer["wrapping_ttl_sec"]
                else:
                    candidate["secret_id"] = answer["secret_id"]
                self.state.change(candidate=candidate)
                if self.try_candidate():
                    self.report()
                    return
                self.report()
                self.wait_for_invitation(pause)
            nonce = self.take_invitation() or secrets.token_hex(16)

    def ask(self, nonce, reason):
        if nonce != self.state.get("asked"):
            self.state.change(asked=nonce, asked_at=time.time())
        message = {"nonce": nonce, "device_id": self.id, "auth_request": "secret_id", "reason": reason}
        self.publish({**message, **self.signed("keyturn/device-request/1", nonce)})
        say("asked", nonce=nonce, reason=reason)

    def answer_to(self, nonce, patience):
        until = time.monotonic() + patience
        while (left := until - time.monotonic()) > 0:
            message = self.next_message(left)
            if message is None:
                continue
            command, sealed = message
            given = "secret_id" in command or "wrapping_token" in command
            if command.get("nonce") == nonce and understood(command):
                # Whoever can write on our topic could send a secret_id of their own; with a sealing key, only who knows it counts.
                if given and self.sealing and not sealed:
                    say("not_sealed", nonce=nonce)
                    continue
                return command
        return None

    def try_candidate(self):
        """Whether it works. Waits for as long as nobody can say."""
        candidate = self.state.get("candidate")
        if "secret_id" not in candidate:
            why = until_known(self.unwrap)
            if why:
                self.state.change(candidate=None, report={"nonce": candidate["nonce"], "ok": False, "reason": why})
                say("not_unwrapped", nonce=candidate["nonce"], why=why)
                return False
            candidate = self.state.get("candidate")
        works = until_known(lambda: self.works(candidate["role_id"], candidate["secret_id"]))
        report = {"nonce": candidate["nonce"], "ok": works}
        if works:
            # The key of the proof is what the service sent.
            sent = candidate.get("wrapping_token", candidate["secret_id"])
            report["proof"] = proof(sent, candidate["nonce"])
            kept = {"role_id": candidate["role_id"], "secret_id": candidate["secret_id"]}
            self.state.change(candidate=None, report=report, **kept)
        else:
            self.state.change(candidate=None, report=report)
        say("tried", nonce=candidate["nonce"], works=works)
        return works

    def unwrap(self):
        """Exchanges the candidate's wrapping token for the secret_id: "" when that is done, why not when it never will be, None when Vault cannot be reached.

        A token works once. So one that is refused although nobody but us should have had it tells that somebody else has the secret_id: the service hears of it,
        destroys it, and its operator finds the reason in the audit trail. Looking before taking tells this from an exchange of ours whose answer was lost."""
        candidate = self.state.get("candidate")
        token, taken = candidate["wrapping_token"], candidate.get("taken", False)
        lost = "wrapping_token_expired" if time.time() > candidate["good_until"] else "wrapping_token_used"
        if not taken:
            status, answer = self.vault("sys/wrapping/lookup", {"token": token})
            if status in REFUSED:
                return lost
            if status != 200:
                return None
            # Whoever has exchanged it could have wrapped something of their own instead.
            if not self.made_by_issuing(answer):
                return "wrapping_token_forged"
            # Written down first: after a power cut nobody could tell our exchange from another's.
            candidate = {**candidate, "taken": True}
            self.state.change(candidate=candidate)
        status, answer = self.vault("sys/wrapping/unwrap", {}, token)
        if status in REFUSED:
            return "unwrap_interrupted" if taken else lost
        if status != 200:
            return None
        secret_id = text_at(answer, "data", "secret_id")
        if not secret_id:
            return "wrapping_token_forged"
        self.state.change(candidate={**candidate, "secret_id": secret_id})
        return ""

    def made_by_issuing(self, answer):
        mount = re.search(r"/v1/(auth/.+)/login$", self.options.login)
        path = text_at(answer, "data", "creation_path") or ""
        return bool(mount and re.fullmatch(re.escape(mount.group(1)) + r"/role/[^/]+/secret-id", path))

    def vault(self, path, body, token=None):
        """Status and content; status None when there is no answer."""
        base = self.options.login.split("/v1/")[0]
        headers = {"Content-Type": "application/json", **self.namespace(), **({"X-Vault-Token": token} if token else {})}
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{base}/v1/{path}", json.dumps(body).encode(), headers), timeout=20) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, None
        except (OSError, ValueError):
            return None, None

    def namespace(self):
        return {"X-Vault-Namespace": self.options.vault_namespace} if self.options.vault_namespace else {}

    def report(self):
        """Until the broker has it: the service destroys the old secret_id on a proven ok, and a new one that did not work."""
        report = self.state.get("report")
        nonce = report["nonce"]
        domain = "keyturn/device-ok/1" if report["ok"] else "keyturn/device-failed/1"
        message = {"nonce": nonce, "device_id": self.id, "auth_result": "ok" if report["ok"] else "failed"}
        if report["ok"]:
            message["proof"] = report["proof"]
        else:
            message["reason"] = report.get("reason", "login_refused")
        self.publish({**message, **self.signed(domain, nonce)})
        self.state.change(report=None)
        say("reported", nonce=nonce, ok=report["ok"])

    def signed(self, domain, nonce):
        if not self.identity:
            return {}
        ts = int(time.time() * 1000)
        return {"ts": ts, "sig": b64url(self.identity.sign(statement(domain, self.id, nonce, ts)))}

    def works(self, role_id, secret_id):
        """True, False, or None when the login cannot be reached or does not say."""
        if not secret_id:
            return False
        body = json.dumps({"role_id": role_id, "secret_id": secret_id}).encode()
        request = urllib.request.Request(self.options.login, body, {"Content-Type": "application/json", **self.namespace()})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status == 200
        except urllib.error.HTTPError as error:
            return False if error.code in (400, 401, 403) else None
        except OSError:
            return None

    # -- MQTT --

    def client(self):
        version = mqtt.MQTTv5 if self.options.mqtt == "5" else mqtt.MQTTv311
        # In 3.1.1 the session is kept by how the client is made, in 5 by how it connects.
        kept = {} if version == mqtt.MQTTv5 else {"clean_session": False}
        client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=self.id, protocol=version, **kept)
        tls = ssl.create_default_context(cafile=self.options.ca)
        tls.load_cert_chain(self.options.certificate, self.options.key)
        client.tls_set_context(tls)
        client.reconnect_delay_set(1, 60)
        client.on_connect = self.on_connect
        client.on_disconnect = self.on_disconnect
        client.on_subscribe = self.on_subscribe
        client.on_message = self.on_message
        client.on_publish = lambda _client, _data, mid, reason, _properties: self.acknowledged.put((mid, reason))
        return client

    def session(self):
        """What is sent while we are away waits for us for an hour."""
        if self.options.mqtt != "5":
            return {}
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        properties.MaximumPacketSize = MAX_COMMAND
        return {"clean_start": False, "properties": properties}

    def on_connect(self, client, _data, _flags, reason, _properties):
        say("connected" if reason == 0 else "refused", why=str(reason))
        if reason == 0:
            client.subscribe(f"iot/{self.id}/command", qos=1)

    def on_subscribe(self, _client, _data, _mid, reasons, _properties):
        if any(reason.is_failure for reason in reasons):
            say("refused", why=str(reasons[0]))
        else:
            self.listening.set()

    def on_disconnect(self, *_):
        self.listening.clear()
        say("disconnected")

    def on_message(self, _client, _data, message):
        try:
            self.inbox.put_nowait(message)
        except queue.Full:
            say("dropped")

    def publish(self, message):
        """Returns when the broker has it, however long that takes; QoS 1, never retained."""
        self.listening.wait()
        # If the connection breaks now, it goes out with the next one, after the subscription.
        mid = self.mqtt.publish(f"iot/{self.id}/status", json.dumps(message), qos=1).mid
        while True:
            acknowledged, reason = self.acknowledged.get()
            if acknowledged == mid:
                break
        if reason.is_failure:
            say("refused", why=str(reason))

    def next_message(self, patience):
        """The next command in clear and whether it was sealed; None for anything else, or when there is none in time."""
        try:
            message = self.inbox.get(timeout=max(patience, 0))
        except queue.Empty:
            return None
        try:
            command, sealed = json.loads(message.payload), False
            if not isinstance(command, dict):
                raise ValueError("not an object")
            nonce = command.get("nonce")
            if "ct" in command:
                if not self.sealing:
                    raise ValueError("sealed, and there is no key")
                enc, ct = from_b64url(command["enc"]), from_b64url(command["ct"])
                command = json.loads(hpke_open(self.sealing, command["suite"], self.id, nonce, enc, ct))
                sealed = True
            elif message.retain:
                raise ValueError("kept by the broker, and not sealed")
        except (ValueError, KeyError, TypeError, AttributeError, InvalidTag) as error:
            say("ignored", why=type(error).__name__)
            return None
        if command.get("ping") == "secret_id" and isinstance(nonce, str):
            say("invited", nonce=nonce)
            self.invitation = nonce
            return None
        return command, sealed

    def take_invitation(self):
        invitation, self.invitation = self.invitation, None
        return invitation

    def wait_for_invitation(self, patience):
        until = time.monotonic() + patience
        while not self.invitation and (left := until - time.monotonic()) > 0:
            self.next_message(left)


def understood(command):
    """Whether it answers a request. Whatever else is on our topic must not stop us."""
    has = lambda name, kind: isinstance(command.get(name), kind) and not isinstance(command.get(name), bool)
    if "error" in command:
        return has("error", str) and has("retry_after_sec", int)
    wrapped = has("wrapping_token", str) and has("wrapping_ttl_sec", int)
    return has("role_id", str) and (has("secret_id", str) or wrapped)


def until_known(ask):
    """Asks until there is an answer."""
    pause = 1
    while (known := ask()) is None:
        # A fleet that was refused at once should not come back at once.
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(pause * 2, 60)
    return known


def text_at(value, *names):
    """The text at that place of a JSON answer, or None: a server may say anything."""
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)


# ---- keys and vectors ----


def read_key(path):
    with open(path, encoding="ascii") as file:
        return bytes.fromhex(file.read().strip())


def make_keys(folder):
    """identity.key and sealing.key, and the options that `keyturn device allow` wants for them."""
    made = []
    for name, kind in (("identity", Ed25519PrivateKey), ("sealing", X25519PrivateKey)):
        key = kind.generate()
        path = os.path.join(folder, f"{name}.key")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(key.private_bytes_raw().hex())
        made.append(f"--{name}-key={b64url(key.public_key().public_bytes_raw())}")
    print(*made)


def check_vectors(folder):
    """Holds the functions above to the published test vectors (mobile-proto/vectors)."""

    def load(name):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            return json.load(file)

    for case in load("device-proof.json")["cases"]:
        assert proof(case["credential"], case["nonce"]) == case["proof"]
    vectors = load("device-identity.json")
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(vectors["seed_hex"]))
    assert b64url(key.public_key().public_bytes_raw()) == vectors["identity_key"]
    for case in vectors["cases"]:
        said = statement(case["domain"], vectors["device_id"], vectors["nonce"], case["ts"])
        assert said.hex() == case["statement_hex"] and b64url(key.sign(said)) == case["sig"]
    vectors = load("device-sealed.json")
    for case in vectors["cases"]:
        key = X25519PrivateKey.from_private_bytes(bytes.fromhex(case["private_key_hex"]))
        assert b64url(key.public_key().public_bytes_raw()) == case["sealing_key"]
        sealed = case["sealed"]
        enc, ct = from_b64url(sealed["enc"]), from_b64url(sealed["ct"])
        opened = hpke_open(key, sealed["suite"], vectors["device_id"], sealed["nonce"], enc, ct)
        assert opened.decode() == case["plaintext"]
    say("vectors_hold")


def options():
    parser = argparse.ArgumentParser(description="Keeps an AppRole secret_id fresh over MQTT.")
    parser.add_argument("--make-keys", metavar="FOLDER", help="make identity.key and sealing.key, print their public keys, end")
    parser.add_argument("--check-vectors", metavar="FOLDER", help="check this program against mobile-proto/vectors, end")
    parser.add_argument("--id", help="the device's id, as it stands in its topics")
    parser.add_argument("--broker", help="host name or address")
    parser.add_argument("--port", type=int, default=8883)
    parser.add_argument("--mqtt", choices=("5", "3.1.1"), default="5")
    parser.add_argument("--ca", help="who may sign the broker's certificate, PEM")
    parser.add_argument("--certificate", help="the device's own, PEM")
    parser.add_argument("--key", help="its key, PEM")
    parser.add_argument("--login", help="where a login is tried: https://vault.example.org:8200/v1/auth/approle/login, or Keyturn's /kr/v1/approle/login")
    parser.add_argument("--vault-namespace", help="the namespace that --login is in, if any")
    parser.add_argument("--identity-key", help="file with the Ed25519 seed in hex: then every message is signed")
    parser.add_argument("--sealing-key", help="file with the X25519 key in hex: then only sealed commands count")
    parser.add_argument("--state", help="file in which role_id and secret_id are kept")
    parser.add_argument("--check", type=float, default=3600, help="seconds between two logins, as an application would make them")
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for an answer before asking again; doubled each time there is none")
    parser.add_argument("--renew", action="store_true", help="ask at the start, whether the secret_id works or not")
    parser.add_argument("--once", action="store_true", help="end when the secret_id works and that is reported")
    found = parser.parse_args()
    needed = ("id", "broker", "ca", "certificate", "key", "login", "state")
    if not (found.make_keys or found.check_vectors) and not all(getattr(found, name) for name in needed):
        parser.error("needed: " + " ".join(f"--{name}" for name in needed))
    return found


def main():
    chosen = options()
    if chosen.make_keys:
        make_keys(chosen.make_keys)
    elif chosen.check_vectors:
        check_vectors(chosen.check_vectors)
    else:
        Device(chosen).run()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
