"""Starts LocalStack on the loopback: by itself it listens on all interfaces, whatever GATEWAY_LISTEN says."""

import runpy

from twisted.internet import endpoints


class Loopback(endpoints.TCP4ServerEndpoint):
    def __init__(self, reactor, port, backlog=50, interface="127.0.0.1"):
        super().__init__(reactor, port, backlog, interface)


endpoints.TCP4ServerEndpoint = Loopback
runpy.run_module("localstack.runtime.main", run_name="__main__")
