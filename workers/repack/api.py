"""What others may ask of repack: what is due, how requests stand, and what a person wants done."""

from __future__ import annotations

from workers.repack import choosing, places, repcloud_file, requests

request = requests.request
finish = requests.finish
due = requests.due
names = places.names
read_repcloud = repcloud_file.read
due_for_choice = choosing.due
alerts_waiting = requests.alerts_waiting
databases = places.databases
forget_old = requests.forget_old
