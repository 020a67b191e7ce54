"""Adapting where AdaBN's assumptions fail: another mix of classes, or several domains in one."""

from adaptkit.guard.adapting import Domains, adapt_domains
from adaptkit.guard.class_mix import ClassMix
from adaptkit.guard.class_moments import ClassMoments, class_moments
from adaptkit.guard.domains import DomainTree, split
from adaptkit.guard.first_layer import FirstLayer
from adaptkit.guard.routed import RoutedModel
from adaptkit.guard.router import Router

__all__ = [
    "ClassMix",
    "ClassMoments",
    "DomainTree",
    "Domains",
    "FirstLayer",
    "RoutedModel",
    "Router",
    "adapt_domains",
    "class_moments",
    "split",
]
