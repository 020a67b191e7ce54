"""A target that is several domains: told apart, adapted each by itself, images routed."""

from adaptkit.domains.adapting import Domains, adapt_domains
from adaptkit.domains.first_layer import FirstLayer
from adaptkit.domains.routed import RoutedModel
from adaptkit.domains.router import Router
from adaptkit.domains.tree import DomainTree, split

__all__ = ["DomainTree", "Domains", "FirstLayer", "RoutedModel", "Router", "adapt_domains", "split"]
