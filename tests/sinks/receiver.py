"""Whom alerts are sent to, for tests/sinks: one of them for each name. Each says "ready" on stdout when it listens, and
writes what it gets to OUT, a JSON object a line.

    receiver.py webhook PORT OUT MODE CERT KEY   HTTPS; what it does stands in the file MODE, read for each request:
                                                 ok, hang, STATUS, or STATUS HEADER VALUE
    receiver.py http PORT OUT MODE               the same without TLS; GET serves documents, see Webhook.do_GET
    receiver.py smtp PORT OUT CERT KEY           STARTTLS and a login are asked for: "agent", "pass word"
    receiver.py smtps PORT OUT CERT KEY          TLS from the first byte, no login
    receiver.py udp PORT OUT                     syslog
    receiver.py tcp PORT OUT                     the same, octet counting
    receiver.py tls PORT OUT CERT KEY            the same
"""

import gzip
import http.server
import json
import os
import socket
import ssl
import sys
import threading
import time

KIND, PORT, OUT = sys.argv[1], int(sys.argv[2]), sys.argv[3]
REST = sys.argv[4:]
HOST = "127.0.0.1"
lock = threading.Lock()
out = open(OUT, "a", encoding="utf-8")


def record(what):
    with lock:
        out.write(json.dumps(what) + "\n")
        out.flush()


def ready():
    print("ready", flush=True)


def context(cert, key):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(cert, key)
    return made


class Webhook(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536

    def mode(self):
        with open(REST[0], encoding="utf-8") as file:
            return file.read().split()

    def names(self):
        return {name.lower(): value for name, value in self.headers.items()}

    def answer(self, status, headers=(), body=b""):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        mode = self.mode()
        got = {"path": self.path, "headers": self.names(), "body": body, "mode": mode[0]}
        if mode[0] == "hang":
            record(got)
            while self.mode()[0] == "hang":
                time.sleep(0.01)
            self.close_connection = True
            return
        if mode[0] == "ok":
            record(got)
            self.answer(200)
            return
        record(got)
        headers = [(mode[1], mode[2])] if len(mode) > 2 else []
        self.answer(int(mode[0]), headers, b"because\r\n of this")

    def do_GET(self):
        record({"path": self.path, "headers": self.names()})
        if self.path == "/document":
            if self.headers.get("If-None-Match") == '"v1"':
                self.answer(304)
            else:
                self.answer(200, [("ETag", '"v1"'), ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")], b"text")
        elif self.path == "/bomb":
            self.answer(200, [("Content-Encoding", "gzip")], gzip.compress(b"\0" * 10_000_000))
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                pass
        elif self.path.startswith("/to/"):
            self.answer(302, [("Location", self.path[4:])])
        else:
            self.answer(404, [], b"none")

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        pass


def webhook(secure):
    server = Server((HOST, PORT), Webhook)
    if secure:
        # Shaken hands with in the request's own thread.
        server.socket = context(*REST[1:3]).wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    ready()
    server.serve_forever()


def smtp(from_start):
    from aiosmtpd.controller import Controller
    from aiosmtpd.smtp import SMTP, AuthResult

    class Handler:
        async def handle_RCPT(self, server, session, envelope, address, options):
            if address.startswith("gone@"):
                return "550 no such user"
            # Its mailbox is full as long as a file of this name is beside OUT.
            if os.path.exists(os.path.join(os.path.dirname(OUT), address)):
                record({"later": address})
                return "452 4.2.2 mailbox full"
            envelope.rcpt_tos.append(address)
            return "250 OK"

        async def handle_DATA(self, server, session, envelope):
            text = envelope.content.decode("utf-8", "replace")
            secure = from_start or session.ssl is not None
            record({"from": envelope.mail_from, "to": envelope.rcpt_tos, "text": text, "tls": secure})
            return "250 OK"

    def authenticate(server, session, envelope, mechanism, data):
        good = (data.login, data.password) == (b"agent", b"pass word")
        return AuthResult(success=good, handled=good)

    made = context(*REST[:2])
    if from_start:
        controller = Controller(Handler(), hostname=HOST, port=PORT, ssl_context=made)
        controller.factory = lambda: SMTP(Handler(), data_size_limit=2**25)
    else:
        controller = Controller(Handler(), hostname=HOST, port=PORT)
        controller.factory = lambda: SMTP(
            Handler(), tls_context=made, require_starttls=True, auth_required=True, authenticator=authenticate,
            data_size_limit=2**25,
        )
    controller.start()
    ready()
    threading.Event().wait()


def udp():
    taken = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    # SO_RCVBUFFORCE: a burst must not be lost here.
    taken.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
    taken.bind((HOST, PORT))
    ready()
    while True:
        record({"message": taken.recv(65536).decode()})


def conversation(stream):
    file = stream.makefile("rb")
    try:
        while True:
            digits = b""
            while (one := file.read(1)) != b" ":
                if not one.isdigit():
                    return
                digits += one
            record({"message": file.read(int(digits)).decode()})
    except OSError:
        pass
    finally:
        stream.close()


def stream(secure):
    listener = socket.create_server((HOST, PORT), backlog=16)
    made = context(*REST[:2]) if secure else None
    ready()
    while True:
        client, _ = listener.accept()
        try:
            client = made.wrap_socket(client, server_side=True) if made else client
        except OSError:
            continue
        threading.Thread(target=conversation, args=(client,), daemon=True).start()


{
    "webhook": lambda: webhook(True),
    "http": lambda: webhook(False),
    "smtp": lambda: smtp(False),
    "smtps": lambda: smtp(True),
    "udp": udp,
    "tcp": lambda: stream(False),
    "tls": lambda: stream(True),
}[KIND]()
