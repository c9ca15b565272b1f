"""Servers and clients that real programs bring, for tests/e2e/clients.rs: one of them for each name.

    services.py http PORT          pages: /plain, /chunked, /gzip
    services.py smtp PORT          takes mails, says each on stdout
    services.py mail PORT TO       sends one, through STARTTLS if it is offered
    services.py ftp PORT FOLDER    files to read and write, without a password
    services.py smb PORT FOLDER    the share "docs"
    services.py grpc PORT          test.Greeter/Hello and test.Greeter/Bye
    services.py call PORT METHOD   calls one of them
"""

import gzip
import http.server
import os
import smtplib
import socket
import socketserver
import sys
import time

# The laboratory's host.
HOST = os.environ.get("SERVICE_HOST", "192.0.2.10")


class Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = b"hello " * 4000
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        if self.path.startswith("/chunked"):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(body), 1000):
                part = body[start:start + 1000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")
            return
        if self.path.startswith("/gzip"):
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()


def serve_http(port):
    class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6  # and IPv4 with it

    Server(("::", port), Pages).serve_forever()


def serve_smtp(port):
    from aiosmtpd.controller import Controller

    class Mails:
        async def handle_DATA(self, server, session, envelope):
            print("mail", envelope.mail_from, envelope.rcpt_tos, len(envelope.content), flush=True)
            return "250 taken"

    Controller(Mails(), hostname="0.0.0.0", port=port).start()
    while True:
        time.sleep(60)


def send_mail(port, to):
    with smtplib.SMTP(HOST, port, timeout=10) as smtp:
        text = "From: a@example.org\r\nSubject: of a test\r\n\r\n.dots\r\n" + "line\r\n" * 500
        smtp.sendmail("a@example.org", [to], text)


def serve_ftp(port, folder):
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import FTPServer

    FTPHandler.authorizer = DummyAuthorizer()
    FTPHandler.authorizer.add_anonymous(folder, perm="elradfmw")
    FTPServer(("0.0.0.0", port), FTPHandler).serve_forever()


def serve_smb(port, folder):
    from impacket.smbserver import SimpleSMBServer

    server = SimpleSMBServer(listenAddress="0.0.0.0", listenPort=port)
    server.addShare("DOCS", folder, "")
    server.setSMB2Support(True)
    server.start()


def serve_grpc(port):
    import grpc
    from concurrent import futures

    def answer(request, context):
        return b"hello " + request

    method = grpc.unary_unary_rpc_method_handler(answer)
    handler = grpc.method_handlers_generic_handler("test.Greeter", {"Hello": method, "Bye": method})
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def call_grpc(port, method):
    import grpc

    with grpc.insecure_channel(f"{HOST}:{port}") as channel:
        print(channel.unary_unary(f"/test.Greeter/{method}")(b"you", timeout=8))


SERVICES = {
    "http": lambda port: serve_http(int(port)),
    "smtp": lambda port: serve_smtp(int(port)),
    "mail": lambda port, to: send_mail(int(port), to),
    "ftp": lambda port, folder: serve_ftp(int(port), folder),
    "smb": lambda port, folder: serve_smb(int(port), folder),
    "grpc": lambda port: serve_grpc(int(port)),
    "call": lambda port, method: call_grpc(int(port), method),
}

if __name__ == "__main__":
    SERVICES[sys.argv[1]](*sys.argv[2:])
