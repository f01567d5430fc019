"""Stores claims, evidence and verdicts: one module for each, which holds all SQL on its tables.

Every method is one round trip or one transaction, and sees only the rows of the tenant that it is given. The tables of
one user have their SQL there: API keys and rate limits in `service.access`, the task queue in `service.tasks`, the
schema's revision in `service.database` and `service.schema`.
"""
